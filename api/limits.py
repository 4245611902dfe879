"""Limits on request bodies, request rates, and what a client may have open at once."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import anyio
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import is_public, path_below_root
from jobs.network.connection_guard import PROGRESS
from sft.errors import InvalidConfig

RETRY_SECONDS = 5
MIN_CLOCK_STEP_SECONDS = 1.0  # smaller steps are NTP's corrections
UPLOADS = re.compile(
    r"/datasets|/datasets/uploads/[^/]+/parts/[^/]+|/model-uploads/[^/]+|/v1/files|/v1/uploads/[^/]+/parts"
)
FORM_BYTES = 2**16  # of an upload beside the file: boundaries, headers, other fields
STEADY_BYTES = 2**20


class BodyLimit:
    """ASGI middleware that limits request bodies.

    A body longer than `max_bytes` gets 413, and the rest is not read. One that takes longer than `timeout_seconds`
    gets 408. Uploads of files may have `max_upload_bytes`, and `timeout_seconds` for each STEADY_BYTES of them.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_seconds: float, max_upload_bytes: int = 0) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_seconds = timeout_seconds
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises HTTPException 413 for its Content-Length, or 413 or 408 when the body is read."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("Content-Length", "")
        is_upload = find_upload(scope)
        most = self.max_upload_bytes + FORM_BYTES if is_upload else self.max_bytes
        if length.isdecimal() and int(length) > most:
            raise self._too_large(is_upload)
        note_progress: Callable[[], None] = scope.get(PROGRESS, lambda: None)
        read_bytes, steady_bytes, is_whole, deadline = 0, 0, False, None

        async def receive_counted() -> Message:
            nonlocal read_bytes, steady_bytes, is_whole, deadline
            if is_whole:  # the next message is the client's disconnect
                return await receive()
            deadline = deadline or time.monotonic() + self.timeout_seconds
            try:
                with anyio.fail_after(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                raise self._too_slow() from error
            is_whole = not message.get("more_body", False)
            read_bytes += len(message.get("body", b""))
            if read_bytes > most:
                raise self._too_large(is_upload)
            if is_upload and read_bytes - steady_bytes >= STEADY_BYTES:
                steady_bytes, deadline = read_bytes, None
                note_progress()
            return message

        await self.app(scope, receive_counted, send)

    def _too_slow(self) -> HTTPException:
        seconds = f"{self.timeout_seconds:g} s"
        detail = f"The body did not arrive within {seconds} (TUNEYARD_BODY_TIMEOUT_SECONDS)"
        return HTTPException(408, detail, {"Connection": "close"})

    def _too_large(self, is_upload: bool) -> HTTPException:
        most, setting = self.max_bytes, "TUNEYARD_MAX_BODY_BYTES"
        if is_upload:
            most, setting = self.max_upload_bytes, "TUNEYARD_MAX_UPLOAD_BYTES"
        detail = f"The body may have at most {most} bytes ({setting})"
        return HTTPException(413, detail, {"Connection": "close"})  # else the server would read the rest


def find_upload(scope: Scope) -> bool:
    """Whether a request sends a file."""
    return scope.get("method") in ("POST", "PUT") and UPLOADS.fullmatch(path_below_root(scope)) is not None


class RequestCounter:
    """Count the requests of each client over a moving window. Each process counts by itself."""

    def __init__(
        self, limit: RateLimitItem, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.limiter = MovingWindowRateLimiter(MemoryStorage())
        self._wall, self._steady = wall, steady  # the limiter uses the wall clock
        self._offset = wall() - steady()

    def count(self, client: str) -> None:
        """Count one request. Raises HTTPException 429 with Retry-After if there are too many."""
        self._reset_after_clock_step()
        if self.limiter.hit(self.limit, client):
            return
        reset_time = self.limiter.get_window_stats(self.limit, client).reset_time
        seconds = max(1, math.ceil(reset_time - time.time()))
        detail = f"At most {self.limit}; try again in {seconds} s"
        raise HTTPException(429, detail, {"Retry-After": str(seconds)})

    def _reset_after_clock_step(self) -> None:
        """Drop the counts if the clock was set back, since earlier requests would count for that much longer."""
        offset = self._wall() - self._steady()
        if self._offset - offset >= MIN_CLOCK_STEP_SECONDS:
            self.limiter.storage.reset()
        self._offset = offset


class ClientLimit:
    """Limit what each client (key, or address if no key is required) has open at once, and the total.

    Args:
        too_many: Detail of the error if a client has `per_client` open.
        full: Detail of the error if `total` are open.
    """

    def __init__(self, per_client: int, total: int, too_many: str, full: str) -> None:
        self.per_client = per_client
        self.total = total
        self.too_many = too_many
        self.full = full
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many are open."""
        return self._open.total()

    @contextmanager
    def held(self, client: str) -> Iterator[None]:
        """Count one more of this client's during the block. Raises HTTPException 429, or 503 at `total`."""
        headers = {"Retry-After": str(RETRY_SECONDS)}
        if self._open[client] >= self.per_client:
            raise HTTPException(429, self.too_many, headers)
        if self.open >= self.total:
            raise HTTPException(503, self.full, headers)
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


class RateLimit:
    """ASGI middleware inside authentication that limits the request rate of each client."""

    def __init__(self, app: ASGIApp, counter: RequestCounter) -> None:
        self.app = app
        self.counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises HTTPException 429 with Retry-After."""
        if scope["type"] == "http" and not is_public(scope):
            self.counter.count(client_name(scope))
        await self.app(scope, receive, send)


class RefusalLimit:
    """ASGI middleware around authentication that responds 429 instead of 401 after too many refusals of an address.

    Valid keys still pass, since several clients may share an address.
    """

    def __init__(self, app: ASGIApp, counter: RequestCounter) -> None:
        self.app = app
        self.counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises what authentication raises, or HTTPException 429 with Retry-After."""
        try:
            await self.app(scope, receive, send)
        except HTTPException as error:
            if error.status_code == HTTPStatus.UNAUTHORIZED:
                self.counter.count(address_name(scope))
            raise


def client_name(scope: Scope) -> str:
    """The client that a request is counted for: its key, or else its address."""
    known = scope.get("state", {}).get("client")
    return f"key {known.key_id}" if known else address_name(scope)


def address_name(scope: Scope) -> str:
    """The address that a request is counted for."""
    address = scope.get("client")
    return f"address {address[0]}" if address else "address unknown"


def parse_rate_limit(text: str) -> RateLimitItem:
    """Parse a limit such as `600/minute`. Raises InvalidConfig."""
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidConfig(f"rate_limit must be a rate such as 600/minute, got {text!r}") from error
