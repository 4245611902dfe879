"""End open streams soon after their key is revoked, and those without a key once keys are required."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anyio import CancelScope, CapacityLimiter, to_thread

from jobs.clients.keys import TTL_SECONDS, ApiKeySnapshot, Client
from sft.errors import StackError

logger = logging.getLogger(__name__)


class OpenStreams:
    """Check the keys of all open streams, in one task that runs while there are any.

    For use on one event loop at a time. While the database is down no key can be revoked, so streams stay open.
    """

    def __init__(self, read_keys: Callable[[], ApiKeySnapshot], check_seconds: float = TTL_SECONDS) -> None:
        self._read_keys = read_keys
        self._check_seconds = check_seconds
        self._open: dict[CancelScope, Client | None] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def allowed(self, client: Client | None) -> Iterator[CancelScope]:
        """Yield a scope that is cancelled once the client's key is invalid; `client` is None if none was required."""
        with CancelScope() as scope:
            self._open[scope] = client
            self._task = self._task or asyncio.create_task(self._watch())
            try:
                yield scope
            finally:
                del self._open[scope]
                if not self._open:
                    self._task.cancel()
                    self._task = None

    async def _watch(self) -> None:
        limiter = CapacityLimiter(1)
        while True:
            await asyncio.sleep(self._check_seconds)
            try:
                snapshot = await to_thread.run_sync(self._read_keys, limiter=limiter)
            except StackError as error:
                logger.debug("Could not check the keys of open streams: %s", error)
                continue
            valid = {client.key_id for client in snapshot.clients.values()}
            for scope, client in self._open.items():
                if client.key_id not in valid if client else not snapshot.is_open:
                    scope.cancel()
