"""The answer to a connection for which there is no room."""

import asyncio
import json
from uuid import uuid4

RETRY_SECONDS = 5


class RefusedConnection(asyncio.Protocol):
    """Says 503 as every error of the API is said, and closes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer whatever is going to be asked."""
        detail = f"The service has {self._limit} connections open and takes no more; try again in {RETRY_SECONDS} s"
        body = json.dumps({"detail": detail, "code": "too_many_connections", "request_id": uuid4().hex})
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: {RETRY_SECONDS}\r\nConnection: close\r\n\r\n"
        )
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - for the type checker
        transport.write((head + body).encode())
        transport.close()
