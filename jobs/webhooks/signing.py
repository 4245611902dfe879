"""Signatures of webhooks, as Standard Webhooks (https://www.standardwebhooks.com) says."""

from collections.abc import Iterable
from datetime import UTC, datetime

from standardwebhooks import Webhook

from jobs.settings import read_secret


def sign(secrets: Iterable[str], message_id: str, timestamp: int, body: str) -> dict[str, str]:
    """The headers of an attempt at `timestamp` (epoch seconds): one signature for each secret, none without any."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    at = datetime.fromtimestamp(timestamp, UTC)
    if signatures := [Webhook(read_secret(secret)).sign(message_id, at, body) for secret in secrets]:
        headers["webhook-signature"] = " ".join(signatures)
    return headers
