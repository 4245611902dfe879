"""Streams of events and logs, counted by client."""

from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.limits import ClientLimit, client_name


def limit_streams(per_client: int, total: int) -> ClientLimit:
    """How many may be open."""
    too_many = (
        f"At most {per_client} streams of events and logs may be open at once for one API key, or for one address "
        "without keys (TUNEYARD_MAX_STREAMS); close one, or ask for the job's status instead"
    )
    return ClientLimit(per_client, total, too_many, f"The service has {total} streams open and takes no more")


class LimitedStream(StreamingResponse):
    """A streaming response that counts as an open stream of its client until it has ended or the client has gone."""

    def __init__(self, limit: ClientLimit, content: Any, **values: Any) -> None:
        super().__init__(content, **values)
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._limit.held(client_name(scope)):
            await super().__call__(scope, receive, send)
