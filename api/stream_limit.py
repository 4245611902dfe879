"""Streams of events and logs, counted by client."""

from typing import Any

from anyio import move_on_after
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.limits import ClientLimit, client_name
from api.stream_keys import OpenStreams

GOODBYE_SECONDS = 1  # for a client that does not read


def limit_streams(per_client: int, total: int) -> ClientLimit:
    """How many may be open."""
    too_many = (
        f"At most {per_client} streams of events and logs may be open at once for one API key, or for one address "
        "without keys (TUNEYARD_MAX_STREAMS); close one, or ask for the job's status instead"
    )
    return ClientLimit(per_client, total, too_many, f"The service has {total} streams open and takes no more")


class LimitedStream(StreamingResponse):
    """A streaming response that counts as an open stream of its client until it has ended or the client has gone.

    It ends, as one that is over, when its client may not go on.
    """

    def __init__(self, limit: ClientLimit, streams: OpenStreams, content: Any, **values: Any) -> None:
        super().__init__(content, **values)
        self._limit = limit
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._limit.held(client_name(scope)):
            with self._streams.allowed(scope.get("state", {}).get("client")) as allowed:
                await super().__call__(scope, receive, send)
            if allowed.cancelled_caught:
                with move_on_after(GOODBYE_SECONDS):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
