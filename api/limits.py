"""How much a client may send at once and how often it may ask."""

import math
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

from api.auth import is_public
from sft.errors import InvalidConfig

RETRY_SECONDS = 5
LEAST_STEP_SECONDS = 1.0  # less is a clock being kept right


class BodyLimit:
    """ASGI middleware: a body longer than `max_bytes` gets 413, counted as it comes and never read further.

    One that has not come after `timeout_seconds` gets 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_seconds: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises HTTPException 413 or 408 into whoever reads the body, or 413 if it is announced."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("Content-Length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            raise self._too_large()
        read_bytes, is_whole, deadline = 0, False, None

        async def receive_counted() -> Message:
            nonlocal read_bytes, is_whole, deadline
            if is_whole:  # what may come now is that the client goes
                return await receive()
            deadline = deadline or time.monotonic() + self.timeout_seconds
            try:
                with anyio.fail_after(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError as error:
                raise self._too_slow() from error
            is_whole = not message.get("more_body", False)
            read_bytes += len(message.get("body", b""))
            if read_bytes > self.max_bytes:
                raise self._too_large()
            return message

        await self.app(scope, receive_counted, send)

    def _too_slow(self) -> HTTPException:
        seconds = f"{self.timeout_seconds:g} s"
        detail = f"The body did not come within {seconds} (TUNEYARD_BODY_TIMEOUT_SECONDS)"
        return HTTPException(408, detail, {"Connection": "close"})

    def _too_large(self) -> HTTPException:
        detail = f"The body may have at most {self.max_bytes} bytes (TUNEYARD_MAX_BODY_BYTES)"
        return HTTPException(413, detail, {"Connection": "close"})  # else the server would read what is left


class RequestCounter:
    """Counts the requests of each client over a moving window, in this process: with several, each allows as much."""

    def __init__(
        self, limit: RateLimitItem, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.limiter = MovingWindowRateLimiter(MemoryStorage())
        self._wall, self._steady = wall, steady  # the limiter counts by the clock that may be set
        self._offset = wall() - steady()

    def count(self, client: str) -> None:
        """Count one request. Raises HTTPException 429 with Retry-After once there are too many."""
        self._forget_what_is_to_come()
        if self.limiter.hit(self.limit, client):
            return
        reset_time = self.limiter.get_window_stats(self.limit, client).reset_time
        seconds = max(1, math.ceil(reset_time - time.time()))
        detail = f"At most {self.limit}; try again in {seconds} s"
        raise HTTPException(429, detail, {"Retry-After": str(seconds)})

    def _forget_what_is_to_come(self) -> None:
        """After the clock was set back, requests of before would count until it is there again."""
        offset = self._wall() - self._steady()
        if self._offset - offset >= LEAST_STEP_SECONDS:
            self.limiter.storage.reset()
        self._offset = offset


class ClientLimit:
    """Counts what each key, or each address where none is needed, has open at once, and all together.

    Args:
        too_many: what to say to a client that has `per_client` open.
        full: what to say to everybody when `total` are open.
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
        """One more of this client's. Raises HTTPException 429, or 503 when all clients have too many."""
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
    """ASGI middleware behind authentication: a client that asks too often gets 429."""

    def __init__(self, app: ASGIApp, counter: RequestCounter) -> None:
        self.app = app
        self.counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises HTTPException 429 with Retry-After."""
        if scope["type"] == "http" and not is_public(scope):
            self.counter.count(client_name(scope))
        await self.app(scope, receive, send)


class RefusalLimit:
    """ASGI middleware around authentication: who is refused too often gets 429 in place of 401.

    Counted by address. Valid keys go through all the same: theirs may be the address of others, too.
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
    """Whose requests are counted together."""
    known = scope.get("state", {}).get("client")
    return f"key {known.key_id}" if known else address_name(scope)


def address_name(scope: Scope) -> str:
    """Whose address a request comes from."""
    address = scope.get("client")
    return f"address {address[0]}" if address else "address unknown"


def parse_rate_limit(text: str) -> RateLimitItem:
    """A limit such as `600/minute`. Raises InvalidConfig."""
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidConfig(f"rate_limit must be such as 600/minute, got {text!r}") from error
