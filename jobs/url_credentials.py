"""Removes credentials from server URLs, which are shown in many places."""

from collections.abc import MutableMapping
from urllib.parse import unquote, urlsplit, urlunsplit

PREFECT_URL, PREFECT_AUTH = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"


def split_credentials(url: str) -> tuple[str, str | None, str | None]:
    """Split a URL into the URL without credentials, the user name and the password, decoded."""
    try:
        parts = urlsplit(url)
        if "@" not in parts.netloc:
            return url, None, None
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        username, password = (value and unquote(value) for value in (parts.username, parts.password))
    except ValueError:  # not a URL, as the call will report
        return url, None, None
    return address, username, password


def is_http(url: str) -> bool:
    """Whether it is the URL of an HTTP server."""
    return url.startswith(("http://", "https://"))


def take_prefects_credentials(environment: MutableMapping[str, str]) -> None:
    """Move credentials from the URL of Prefect's API to the variable from which Prefect's client reads them."""
    address, username, password = split_credentials(environment.get(PREFECT_URL, ""))
    if is_http(address) and (username or password):
        environment.update({PREFECT_URL: address, PREFECT_AUTH: f"{username or ''}:{password or ''}"})
