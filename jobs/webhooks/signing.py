"""Signatures of webhooks, as Standard Webhooks (https://www.standardwebhooks.com) says."""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime

from standardwebhooks import Webhook

SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret


def read_secret(secret: str) -> bytes:
    """The key of a `whsec_...` secret. Raises ValueError, which does not name it.

    The library takes keys of any length and skips characters that are not base64; both are refused here.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes: openssl rand -base64 32")
    return key


def sign(secrets: Iterable[str], message_id: str, timestamp: int, body: str) -> dict[str, str]:
    """The headers of an attempt at `timestamp` (epoch seconds): one signature for each secret, none without any."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    at = datetime.fromtimestamp(timestamp, UTC)
    if signatures := [Webhook(read_secret(secret)).sign(message_id, at, body) for secret in secrets]:
        headers["webhook-signature"] = " ".join(signatures)
    return headers
