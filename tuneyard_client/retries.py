"""Retry policy of calls, and messages for connection errors."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx

from tuneyard_client.calls import Call
from tuneyard_client.errors import ClientError, ServiceUnreachable
from tuneyard_client.urls import hide_password

MAX_TRIES = 5
FIRST_PAUSE_SECONDS = 0.25  # doubles with every try
LONGEST_PAUSE_SECONDS = 60.0  # no retry if Retry-After is longer
_RETRIED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class Attempts:
    """Decide on retries of one call: after connection errors, and after 429 and 503 with `Retry-After`."""

    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self._tries = 0

    def pause_after(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try; None if the outcome is final."""
        self._tries += 1
        if not self._call.is_repeatable or self._tries >= MAX_TRIES:
            return None
        if isinstance(outcome, httpx.TransportError):
            return pause_after_failures(self._tries)
        if outcome.status_code not in _RETRIED:
            return None
        seconds = read_retry_after(outcome.headers.get("Retry-After"))
        return seconds if seconds is not None and seconds <= LONGEST_PAUSE_SECONDS else None


def pause_after_failures(failures: int) -> float:
    """Seconds to wait after so many failed tries: exponential backoff."""
    return float(FIRST_PAUSE_SECONDS * 2 ** (failures - 1))


def read_retry_after(value: str | None) -> float | None:
    """Parse a Retry-After header (RFC 9110, 10.2.3), seconds or a date, to seconds; None if missing or invalid."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def unreachable(error: httpx.TransportError, base_url: httpx.URL) -> ClientError:
    """Translate a connection error into a ServiceUnreachable."""
    url = hide_password(str(base_url)).rstrip("/")
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        problem = f"the connection to {url} was cut off before the response was complete"
        return ServiceUnreachable(f"{problem} ({error or type(error).__name__}); is the service running? Try again")
    if isinstance(error, httpx.TimeoutException):
        return ServiceUnreachable(f"no response from {url} in time ({type(error).__name__})")
    return ServiceUnreachable(f"no response from {url} ({error or type(error).__name__}); is the service running?")
