"""Poll events and states of jobs once for all streams, and pass them to every listener."""

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import NamedTuple, TypeVar
from uuid import UUID

from anyio import CapacityLimiter, to_thread

from jobs.errors import JobNotFound
from jobs.results.feed import ENDING_POLL_SECONDS, ENDING_SECONDS, POLL_SECONDS, STATE_SECONDS
from jobs.results.news import News, read_news
from jobs.sanitizing.log_lines import SeldomLog
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.storage.connections import translate_errors
from jobs.storage.events import BATCH_ROWS, read_events
from jobs.storage.tables import JobEvent
from sft.errors import StackError

logger = logging.getLogger(__name__)

THREADS = 4  # for all event streams, apart from those of requests
STATES_AT_ONCE = 4
KEPT_EVENTS = 500  # per job; a listener that is further behind reads the database
WAKE_BATCH = 25  # listeners woken before the event loop serves requests again
RETRY_SECONDS = 3.0

T = TypeVar("T")


class Sent(NamedTuple):
    """An event's id and the bytes to send; empty for the end of a process, which clients do not see."""

    id: int
    chunk: bytes


class Channel:
    """The newest events of one job, and whether all of them have been read."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.is_over = False
        self.is_lost = False  # the job no longer exists
        self.last_id: int | None = None  # of the events read; None until a listener has caught up
        self.ending_until = float("-inf")
        self.state_read_at = time.monotonic()
        self.listeners: dict[object, asyncio.Event] = {}
        self._kept: deque[Sent] = deque(maxlen=KEPT_EVENTS)
        self._floor = 0  # all events after this one are kept

    @property
    def is_ending(self) -> bool:
        """Whether the job's process has reported its end, which Prefect will know soon."""
        return time.monotonic() < self.ending_until

    def start_at(self, event_id: int) -> None:
        """Keep the events after this one, up to which a listener has read the database."""
        if self.last_id is None:
            self.last_id = self._floor = event_id

    def after(self, event_id: int) -> list[Sent] | None:
        """Return the events after this one; None if they are not all kept."""
        if self.last_id is None or event_id < self._floor:
            return None
        return [*takewhile(lambda sent: sent.id > event_id, reversed(self._kept))][::-1]

    def take(self, rows: list[JobEvent], encoded: list[Sent], is_last: bool) -> None:
        """Keep events that were read. With `is_last` the job has ended, so there will be no more."""
        for sent in encoded:
            if len(self._kept) == KEPT_EVENTS:
                self._floor = self._kept[0].id
            self._kept.append(sent)
            self.last_id = sent.id
        if any(row.event == "end" for row in rows):
            self.ending_until = time.monotonic() + ENDING_SECONDS
        self.is_over = is_last and len(rows) < BATCH_ROWS


class EventHub:
    """The event channels of one process. While there are any, one task polls events and one polls job states.

    Neither uses a thread of those that serve requests. For use on one event loop at a time.

    Args:
        encode: Encodes an event, once for all listeners.
    """

    def __init__(self, encode: Callable[[JobEvent], bytes]) -> None:
        self._encode = encode
        self._channels: dict[UUID, Channel] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._poll_now = asyncio.Event()
        self._limiter: CapacityLimiter | None = None
        self._log = SeldomLog(logger)

    @property
    def listeners(self) -> int:
        """Number of listeners."""
        return sum(len(channel.listeners) for channel in self._channels.values())

    @property
    def is_polling(self) -> bool:
        """Whether the tasks run."""
        return bool(self._tasks)

    @contextmanager
    def listening(self, service: JobService, job: Job) -> Iterator[tuple[Channel, asyncio.Event]]:
        """Yield the channel of a job, and an event that is set whenever the channel has news."""
        channel = self._channels.get(job.id)
        if channel is None:
            channel = self._channels[job.id] = Channel(job)
        listener, news = object(), asyncio.Event()
        channel.listeners[listener] = news
        if not self._tasks:
            self._poll_now = asyncio.Event()
            self._tasks = [asyncio.create_task(self._poll_events(service))]
            self._tasks.append(asyncio.create_task(self._poll_states(service)))
        try:
            yield channel, news
        finally:
            del channel.listeners[listener]
            if not channel.listeners and self._channels.get(job.id) is channel:
                del self._channels[job.id]
            if not self._channels:
                for task in self._tasks:
                    task.cancel()
                self._tasks, self._limiter = [], None

    def encode(self, rows: list[JobEvent]) -> list[Sent]:
        """Encode events."""
        return [Sent(row.id, b"" if row.event == "end" else self._encode(row)) for row in rows]

    async def read(self, service: JobService, job_id: UUID, after: int) -> list[JobEvent]:
        """Read a job's events from the database, for a listener that is behind. Raises StackError."""

        def query() -> list[JobEvent]:
            with translate_errors():
                return read_events(service.engine, job_id, after)

        return await self.run(query)

    async def run(self, query: Callable[[], T]) -> T:
        """Run a blocking call on a thread of the streams."""
        self._limiter = self._limiter or CapacityLimiter(THREADS)
        return await to_thread.run_sync(query, limiter=self._limiter)

    async def _poll_events(self, service: JobService) -> None:
        while True:
            is_ending = any(channel.is_ending for channel in self._channels.values())
            await self._sleep(ENDING_POLL_SECONDS if is_ending else POLL_SECONDS)
            await self._catching_errors(lambda: self._read_news(service))

    async def _read_news(self, service: JobService) -> None:
        channels = {job_id: c for job_id, c in self._channels.items() if c.last_id is not None and not c.is_over}
        ended = {job_id for job_id, channel in channels.items() if channel.job.status.is_terminal}
        seen = {job_id: channel.last_id for job_id, channel in channels.items() if channel.last_id is not None}
        if not seen:
            return

        def query() -> News:
            with translate_errors():
                return read_news(service.engine, seen)

        news = await self.run(query)
        for job_id, channel in channels.items():
            rows = news.events.get(job_id, [])
            channel.take(rows, self.encode(rows), is_last=job_id in ended)
            if job_id in news.ended and not channel.job.status.is_terminal:
                channel.ending_until = time.monotonic() + ENDING_SECONDS
            if rows or channel.is_over:
                await wake(channel.listeners)
            if len(rows) == BATCH_ROWS:
                self._poll_now.set()

    async def _poll_states(self, service: JobService) -> None:
        while True:
            await asyncio.sleep(ENDING_POLL_SECONDS)
            await self._catching_errors(lambda: self._read_states(service))

    async def _read_states(self, service: JobService) -> None:
        """Read the state of jobs that are ending, and of the job read longest ago if that is STATE_SECONDS ago.

        The database reports most ends before that.
        """
        now = time.monotonic()
        running = [channel for channel in self._channels.values() if not channel.job.status.is_terminal]
        running.sort(key=lambda channel: channel.state_read_at)
        ending = [channel for channel in running if channel.is_ending][:STATES_AT_ONCE]
        others = [channel for channel in running[:1] if now - channel.state_read_at >= STATE_SECONDS]
        await asyncio.gather(*(self._read_state(service, channel) for channel in {*ending, *others}))

    async def _read_state(self, service: JobService, channel: Channel) -> None:
        channel.state_read_at = time.monotonic()
        try:
            channel.job = await self.run(functools.partial(service.get, channel.job.id))
        except JobNotFound:
            channel.is_lost = True
            await wake(channel.listeners)
        if channel.job.status.is_terminal:
            self._poll_now.set()

    async def _catching_errors(self, poll: Callable[[], Awaitable[None]]) -> None:
        """Log the errors of a poll and wait, so that neither an outage nor a bug ends all streams."""
        try:
            await poll()
        except StackError as error:
            self._log.warn(f"Event streams are waiting: {error}")
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:
            logger.exception("Could not poll the events of jobs")
            await asyncio.sleep(RETRY_SECONDS)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._poll_now.wait()
        except TimeoutError:
            pass
        self._poll_now.clear()


async def wake(listeners: Mapping[object, asyncio.Event]) -> None:
    """Wake listeners in batches."""
    for number, news in enumerate([*listeners.values()], 1):
        news.set()
        if number % WAKE_BATCH == 0:
            await asyncio.sleep(0)
