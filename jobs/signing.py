"""Signatures of webhooks, as Standard Webhooks (https://www.standardwebhooks.com) says."""

import base64
import hashlib
import hmac
from collections.abc import Iterable

SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret


def read_secret(secret: str) -> bytes:
    """The key of a `whsec_...` secret. Raises ValueError, which does not name it."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes: openssl rand -base64 32")
    return key


def sign(secrets: Iterable[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of an attempt at `timestamp` (epoch seconds): one signature for each secret, none without any."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    content = f"{message_id}.{timestamp}.".encode() + body
    digests = [hmac.digest(read_secret(secret), content, hashlib.sha256) for secret in secrets]
    if digests:
        headers["webhook-signature"] = " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return headers
