"""Types of settings: lists in the form of environment variables, and secrets."""

import base64
import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr
from pydantic_settings import NoDecode

SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret

STORE_SCHEMES = ("file", "s3", "gs", "az")  # of the URL of a shared store


def _split(value: Any) -> Any:
    return tuple(filter(None, re.split(r"[\s,]+", value))) if isinstance(value, str) else value or ()


def read_secret(secret: str) -> bytes:
    """Decode the key of a `whsec_...` secret. Raises ValueError, whose message does not contain the secret.

    Stricter than the library, which accepts keys of any length and ignores characters that are not base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes, as from openssl rand -base64 32")
    return key


def _check_store(url: str) -> str:
    """Raise ValueError for a store's URL that can't be used, or that contains credentials."""
    scheme, _, place = url.partition("://")
    if scheme not in STORE_SCHEMES or not place.strip("/"):
        forms = ", ".join(f"{known}://..." for known in STORE_SCHEMES)
        raise ValueError(f"must be one of {forms}, with a bucket or an absolute path")
    if scheme == "file" and not place.startswith("/"):
        raise ValueError("must name an absolute path, as file:///mnt/tuneyard")
    if "@" in place or "?" in place:
        raise ValueError("must not contain credentials; set them in the variables of the store's own tools")
    if "::" in place or "#" in place or not url.isprintable():  # what fsspec, or a line break, would make of it
        raise ValueError("must be a URL without ::, # and line breaks")
    if scheme != "file" and {"", ".", ".."}.intersection(place.rstrip("/").split("/")):  # S3 lists other folders
        raise ValueError("must be a URL without empty parts, . and ..")
    try:
        urlsplit(url)
    except ValueError as error:
        raise ValueError("must be a URL with a bucket or an absolute path") from error
    return url.rstrip("/")


def _check_database(url: str) -> str:
    """Raise ValueError for a URL that is not PostgreSQL's, or that names no database."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    form = "must be postgresql://USER@HOST/DATABASE"
    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(form) from None  # its message may have the password
    if parts.drivername not in ("postgresql", "postgresql+psycopg2") or not parts.database:
        raise ValueError(form)
    return url


def _check_secret(secret: SecretStr) -> SecretStr:
    read_secret(secret.get_secret_value())
    return secret


DatabaseUrl = Annotated[str, AfterValidator(_check_database)]
StoreUrl = Annotated[str, AfterValidator(_check_store)]
# Lists in environment variables, separated by commas or blanks.
Networks = Annotated[
    tuple[IPv4Network | IPv6Network, ...],
    NoDecode,
    BeforeValidator(_split),
    PlainSerializer(lambda networks: ",".join(map(str, networks)), return_type=str, when_used="json"),
]
Names = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(_split),
    PlainSerializer(lambda names: ",".join(names), return_type=str, when_used="json"),
]
# Settings are written as JSON only to the environment and the planner's pipe.
Secret = Annotated[
    SecretStr, PlainSerializer(lambda value: value.get_secret_value(), return_type=str, when_used="json-unless-none")
]
WebhookSecrets = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_check_secret)], ...],
    NoDecode,
    BeforeValidator(_split),
    PlainSerializer(lambda values: ",".join(v.get_secret_value() for v in values), return_type=str, when_used="json"),
]
