"""`HEAD` wherever there is `GET`: health checks and link checkers ask so, and FastAPI's routes do not answer it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What goes on until a job has ended has no end to measure; an archive has a route of its own, which reads it once.
OTHERWISE = ("/events", "/logs", "/adapter")


class HeadAsGet:
    """ASGI middleware around the router: serves `HEAD` as `GET` and sends the headers alone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not is_served_as_get(scope):
            await self.app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}

        async def send_headers(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        try:
            await self.app(as_get, receive, send_headers)
        finally:
            if "route" in as_get:  # for the figures of requests
                scope["route"] = as_get["route"]


def is_served_as_get(scope: Scope) -> bool:
    """Whether this is a HEAD that no route of its own takes."""
    return scope["method"] == "HEAD" and not str(scope["path"]).endswith(OTHERWISE)
