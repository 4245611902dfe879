"""Connections that hold a server up without a key: half a request, none at all, an answer that is not read."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

HALF_HEADERS = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
HALF_BODY = (
    b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
)
NOTHING = b""
SECOND_HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nG"  # one whole request, then the first byte of another
# Whole for uvicorn, which hands the connection over, and never read to its end by the library for web sockets.
SOCKET = b" /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
BEGINNINGS = {
    "headers": HALF_HEADERS,
    "body": HALF_BODY,
    "silent": NOTHING,
    "second": SECOND_HALF,
    "socket by POST": b"POST" + SOCKET + b"\r\n",
    "socket with a long header": b"GET" + SOCKET + b"X-Long: " + b"x" * 9000 + b"\r\n\r\n",
}
TRICKLE_SECONDS = 1.0


@dataclass(frozen=True)
class HeldUp:
    """What became of connections that never finish, and of a client beside them."""

    opened: int  # connections that could be made
    closed: int  # of these, closed by the server by the end
    probes: int  # requests of a well-behaved client, each over a connection of its own
    failed: int  # of these, without a 200 within five seconds
    max_latency_ms: float


def hold_half_open(base_url: str, connections: int = 300, seconds: float = 5, kind: str = "headers") -> HeldUp:
    """Open connections that send the beginning of a request and never the rest, and ask /health beside them.

    Args:
        kind: `headers`, `body`, `silent` (not a byte),
            `second` (after a request that was whole) or another one of BEGINNINGS.
    """
    return asyncio.run(_hold(base_url, connections, seconds, BEGINNINGS[kind], trickle=b""))


def trickle_headers(base_url: str, connections: int = 300, seconds: float = 5) -> HeldUp:
    """The same with another byte of a header every second, which keeps a server alive that only counts silence."""
    return asyncio.run(_hold(base_url, connections, seconds, HALF_HEADERS, trickle=b"x"))


def trickle_body(base_url: str, connections: int = 300, seconds: float = 5) -> HeldUp:
    """The same with another byte of the body every second."""
    return asyncio.run(_hold(base_url, connections, seconds, HALF_BODY, trickle=b" "))


def keep_coming(base_url: str, at_once: int = 50, seconds: float = 5) -> HeldUp:
    """Half-open connections that are made anew as fast as it goes while a client asks /health."""
    return asyncio.run(_keep_coming(base_url, at_once, seconds))


def read_nothing(base_url: str, connections: int = 300, seconds: float = 5, path: str = "/openapi.json") -> HeldUp:
    """Ask for long answers, many over each connection, and never read them."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    return asyncio.run(_hold(base_url, connections, seconds, request * 20, trickle=b""))


async def _hold(base_url: str, connections: int, seconds: float, beginning: bytes, trickle: bytes) -> HeldUp:
    async with _opened(base_url, connections, beginning) as streams:
        trickling = asyncio.create_task(_trickle(streams, trickle)) if trickle else None
        probes = await _probe(base_url, seconds)
        if trickling:
            trickling.cancel()
        closed = sum(await asyncio.gather(*(_is_closed(reader) for reader, _ in streams)))
    return HeldUp(len(streams), closed, *probes)


async def _keep_coming(base_url: str, at_once: int, seconds: float) -> HeldUp:
    count = 0
    end = time.monotonic() + seconds

    async def come() -> None:
        nonlocal count
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                _, writer = await _connect(base_url)
                writer.write(HALF_HEADERS)
                await writer.drain()
                count += 1
                await asyncio.sleep(0.1)
                writer.close()

    coming = [asyncio.create_task(come()) for _ in range(at_once)]
    probes = await _probe(base_url, seconds)
    await asyncio.gather(*coming)
    return HeldUp(count, count, *probes)


@contextlib.asynccontextmanager
async def _opened(base_url: str, connections: int, beginning: bytes) -> AsyncIterator[list[Stream]]:
    """So many connections, as far as they can be made, each with the beginning of a request."""

    async def open_one() -> Stream | None:
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.wait_for(_connect(base_url), 5)
            writer.write(beginning)
            return reader, writer
        return None

    made = [stream for stream in await asyncio.gather(*(open_one() for _ in range(connections))) if stream]
    try:
        yield made
    finally:
        for _, writer in made:
            writer.transport.abort()
        await asyncio.sleep(0)  # the loop closes them


async def _connect(base_url: str) -> Stream:
    parts = urlsplit(base_url)
    return await asyncio.open_connection(parts.hostname, parts.port or 80, limit=1024)


async def _trickle(streams: list[Stream], piece: bytes) -> None:
    while True:
        await asyncio.sleep(TRICKLE_SECONDS)
        for _, writer in streams:
            if not writer.is_closing():
                writer.write(piece)


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server has closed it; what it has sent before is passed over."""
    try:
        while True:
            if not await asyncio.wait_for(reader.read(65536), 0.05):
                return True
    except TimeoutError:
        return False
    except OSError:
        return True


async def _probe(base_url: str, seconds: float, patience_seconds: float = 5) -> tuple[int, int, float]:
    """Requests of /health four times a second; how many they were, how many failed, and the longest in ms."""
    end, count, failed, longest = time.monotonic() + seconds, 0, 0, 0.0
    while time.monotonic() < end:
        began = time.monotonic()
        failed += not await _answers(lambda: _get_health(base_url, patience_seconds))
        longest = max(longest, time.monotonic() - began)
        count += 1
        await asyncio.sleep(0.25)
    return count, failed, round(1000 * longest, 1)


async def _get_health(base_url: str, patience_seconds: float) -> int:
    async with httpx.AsyncClient(timeout=patience_seconds, trust_env=False) as client:
        return (await client.get(f"{base_url}/health")).status_code


async def _answers(ask: Callable[[], Awaitable[int]]) -> bool:
    try:
        return await ask() == httpx.codes.OK
    except httpx.HTTPError:
        return False
