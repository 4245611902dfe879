"""How many streams a client may have open, and responses that count as one."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.limits import client_name

RETRY_SECONDS = 5


class StreamLimit:
    """Counts the open streams of each key, or of each address where none is needed, and of all together."""

    def __init__(self, per_client: int, total: int) -> None:
        self.per_client = per_client
        self.total = total
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many streams are open."""
        return self._open.total()

    @contextmanager
    def held(self, client: str) -> Iterator[None]:
        """One more stream of this client. Raises HTTPException 429, or 503 when all clients have too many."""
        headers = {"Retry-After": str(RETRY_SECONDS)}
        if self._open[client] >= self.per_client:
            detail = (
                f"At most {self.per_client} streams of events and logs may be open at once for one API key, or for one "
                f"address without keys (TUNEYARD_MAX_STREAMS); close one, or ask for the job's status instead"
            )
            raise HTTPException(429, detail, headers)
        if self.open >= self.total:
            raise HTTPException(503, f"The service has {self.total} streams open and takes no more", headers)
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


class LimitedStream(StreamingResponse):
    """A streaming response that counts as an open stream of its client until it has ended or the client has gone."""

    def __init__(self, limit: StreamLimit, content: Any, **values: Any) -> None:
        super().__init__(content, **values)
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._limit.held(client_name(scope)):
            await super().__call__(scope, receive, send)
