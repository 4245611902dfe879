"""Lets a client read a response that it gets while it still sends its request's body.

A server that closes a connection with bytes that it has not read resets it, and a client that reads the response after
it has sent everything may lose it. So the rest of the body is read and dropped for a while before the connection is
closed, as nginx's `lingering_close` does. The response is sent first, and nothing else waits.
"""

import time

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 16 * 2**20
SECONDS = 10.0
SILENT_SECONDS = 2.0  # of a client that sends nothing more


class Lingering:
    """ASGI middleware that reads on, up to a limit, after a response that closes the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_body = has_begun = is_held = closes = False

        async def receive_noted() -> Message:
            nonlocal has_body, has_begun
            message = await receive()
            has_begun, has_body = True, bool(message.get("more_body"))
            return message

        async def hold_end(message: Message) -> None:
            nonlocal closes, is_held
            if message["type"] == "http.response.start":
                closes = asks_to_close(Headers(raw=message["headers"])) or asks_to_close(Headers(scope=scope))
            elif closes and not message.get("more_body") and (has_body if has_begun else sends_body(scope)):
                is_held, message = True, {**message, "more_body": True}
            await send(message)

        await self.app(scope, receive_noted, hold_end)
        if is_held:
            await drop_body(receive)
            await send({"type": "http.response.body", "body": b""})


def asks_to_close(headers: Headers) -> bool:
    """Whether a request or a response is the last one of its connection."""
    return headers.get("connection", "").lower() == "close"


def sends_body(scope: Scope) -> bool:
    """Whether a request of which nothing was read has a body that its client sends without being asked to."""
    headers = Headers(scope=scope)
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    return has_body and headers.get("expect", "").lower() != "100-continue"


async def drop_body(receive: Receive) -> None:
    """Read the rest of a body, up to the limits."""
    left, deadline = MOST_BYTES, time.monotonic() + SECONDS
    while left > 0 and (seconds := min(SILENT_SECONDS, deadline - time.monotonic())) > 0:
        message: Message | None = None
        with anyio.move_on_after(seconds):
            message = await receive()
        if message is None or not message.get("more_body"):
            return
        left -= len(message.get("body", b""))
