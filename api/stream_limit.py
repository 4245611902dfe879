"""Limit the event and log streams of each client."""

from typing import Any

from anyio import move_on_after
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.limits import ClientLimit, client_name
from api.stream_keys import OpenStreams

CLOSE_SECONDS = 1  # to end the stream of a client that does not read


def limit_streams(per_client: int, total: int) -> ClientLimit:
    """Limit the open streams."""
    too_many = (
        f"At most {per_client} streams of events and logs may be open at once per API key, or per address without "
        "keys (TUNEYARD_MAX_STREAMS); close one, or poll the job's status instead"
    )
    return ClientLimit(per_client, total, too_many, f"The service has {total} streams open, its maximum")


class LimitedStream(StreamingResponse):
    """A streaming response that counts as its client's open stream until it ends or the client disconnects.

    It ends normally when the client's key is revoked.
    """

    def __init__(self, limit: ClientLimit, streams: OpenStreams, content: Any, **values: Any) -> None:
        super().__init__(content, **values)
        self._limit = limit
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Raises HTTPException if the client has too many streams."""
        with self._limit.held(client_name(scope)):
            with self._streams.allowed(scope.get("state", {}).get("client")) as allowed:
                await super().__call__(scope, receive, send)
            if allowed.cancelled_caught:
                with move_on_after(CLOSE_SECONDS):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
