"""When a call is sent again, and what it means when there is no answer."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx

from tuneyard_client.calls import Call
from tuneyard_client.errors import ClientError, ServiceUnreachable

LIMIT = 5  # times a call is sent
FIRST_PAUSE_SECONDS = 0.25  # doubles with every try
LONGEST_PAUSE_SECONDS = 60.0  # a service that asks for more gets no second try
_MAY_PASS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class Attempts:
    """The tries of one call. Connection errors, and 429 and 503 that name a time, are worth another one."""

    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self._made = 0

    def pause_after(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try; None when the outcome stands."""
        self._made += 1
        if not self._call.is_repeatable or self._made >= LIMIT:
            return None
        if isinstance(outcome, httpx.UnsupportedProtocol):
            return None
        if isinstance(outcome, httpx.TransportError):
            return pause_before_try(self._made)
        if outcome.status_code not in _MAY_PASS:
            return None
        seconds = read_retry_after(outcome.headers.get("Retry-After"))
        return seconds if seconds is not None and seconds <= LONGEST_PAUSE_SECONDS else None


def pause_before_try(made: int) -> float:
    """Seconds to wait when `made` tries have failed."""
    return float(FIRST_PAUSE_SECONDS * 2 ** (made - 1))


def read_retry_after(value: str | None) -> float | None:
    """Seconds, given as such or as a date (RFC 9110, 10.2.3); None when there is nothing to read."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def unreachable(error: httpx.TransportError, base_url: httpx.URL) -> ClientError:
    """What a connection error means to the caller."""
    place = str(base_url).rstrip("/")
    if isinstance(error, httpx.UnsupportedProtocol):
        return ServiceUnreachable(f"{place!r} is not a URL; it must begin with http:// or https://")
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        said = f"the connection to {place} was cut off before all had come ({error or type(error).__name__})"
        return ServiceUnreachable(f"{said}; is the service running? Ask it again")
    if isinstance(error, httpx.TimeoutException):
        return ServiceUnreachable(f"no answer from {place} in time ({type(error).__name__})")
    return ServiceUnreachable(f"no answer from {place} ({error or type(error).__name__}); is the service running?")
