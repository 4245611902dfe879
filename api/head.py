"""Serve `HEAD` wherever there is `GET`, which FastAPI does not; health checks and link checkers use it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Streams have no length; adapters have a HEAD route that does not read the archive twice.
OWN_HEAD = ("/events", "/logs", "/adapter")

HEADERS_ALONE = "tuneyard.headers_alone"  # in the scope of a request whose body is not sent


class HeadAsGet:
    """ASGI middleware that serves `HEAD` as `GET` and sends the headers alone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not is_served_as_get(scope):
            await self.app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET", HEADERS_ALONE: True}

        async def send_headers(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        try:
            await self.app(as_get, receive, send_headers)
        finally:
            if "route" in as_get:  # for the request metrics
                scope["route"] = as_get["route"]


def is_served_as_get(scope: Scope) -> bool:
    """Whether this is a HEAD request to a path without a HEAD route."""
    return scope["method"] == "HEAD" and not str(scope["path"]).endswith(OWN_HEAD)


def is_head(scope: Scope) -> bool:
    """Whether the body of this `GET` is not sent."""
    return HEADERS_ALONE in scope
