"""Poll the log of each followed job once a second, for all streams that follow it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from prefect.client.schemas.objects import Log

from api.channels import RETRY_SECONDS, wake
from jobs.errors import JobNotFound
from jobs.results.logs import LogFeed
from jobs.sanitizing.log_lines import SeldomLog
from jobs.service.job import Job
from jobs.service.job_service import JobService
from sft.errors import StackError

logger = logging.getLogger(__name__)

THREADS = 4  # for all followed logs, apart from those of requests and of events
POLL_SECONDS = 1.0
KEPT_LINES = 2000  # per job; a listener that is further behind reads from Prefect

T = TypeVar("T")


class LogChannel:
    """The newest lines of one job's log, and whether more may come."""

    def __init__(self) -> None:
        self.position = 0  # number of lines read
        self.is_over = False
        self.listeners: dict[object, asyncio.Event] = {}
        self.task: asyncio.Task[None] | None = None
        self._kept: deque[Log] = deque(maxlen=KEPT_LINES)

    def add(self, logs: list[Log]) -> None:
        """Keep lines that were read."""
        self._kept.extend(logs)
        self.position += len(logs)

    def after(self, position: int) -> list[Log] | None:
        """Return the lines after a position; None if they are not all kept."""
        behind = self.position - position
        return None if behind > len(self._kept) else [*islice(self._kept, len(self._kept) - behind, None)]


class LogHub:
    """The log channels of one process, each with a task that polls. For use on one event loop at a time."""

    def __init__(self) -> None:
        self._channels: dict[UUID, LogChannel] = {}
        self._limiter: CapacityLimiter | None = None
        self._log = SeldomLog(logger)

    @property
    def listeners(self) -> int:
        """Number of listeners."""
        return sum(len(channel.listeners) for channel in self._channels.values())

    @contextmanager
    def listening(self, service: JobService, job: Job) -> Iterator[tuple[LogChannel, asyncio.Event]]:
        """Yield the channel of a job, and an event that is set whenever the channel has news."""
        channel = self._channels.get(job.id)
        if channel is None:
            channel = self._channels[job.id] = LogChannel()
            channel.task = asyncio.create_task(self._poll(channel, LogFeed(service, job)))
        listener, news = object(), asyncio.Event()
        channel.listeners[listener] = news
        try:
            yield channel, news
        finally:
            del channel.listeners[listener]
            if not channel.listeners:
                if channel.task is not None:
                    channel.task.cancel()
                del self._channels[job.id]
            if not self._channels:
                self._limiter = None

    async def run(self, query: Callable[[], T]) -> T:
        """Run a blocking call on a thread of the logs."""
        self._limiter = self._limiter or CapacityLimiter(THREADS)
        return await to_thread.run_sync(query, limiter=self._limiter)

    async def _poll(self, channel: LogChannel, feed: LogFeed) -> None:
        while not channel.is_over:
            pause = POLL_SECONDS
            try:
                logs = await self.run(feed.poll)
                channel.add(logs)
                channel.is_over = feed.is_over
                if logs or channel.is_over:
                    await wake(channel.listeners)
            except JobNotFound:
                channel.is_over = True
                await wake(channel.listeners)
            except StackError as error:
                self._log.warn(f"Log streams are waiting: {error}")
                pause = RETRY_SECONDS
            except Exception:
                logger.exception("Could not poll a job's log")
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)
