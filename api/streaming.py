"""Stream a job's events and log while it runs."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping

from fastapi.sse import format_sse_event

from api.channels import RETRY_SECONDS, Channel, EventHub, Sent
from api.log_channels import LogHub
from jobs.results.feed import END_ID, Event, describe_end, public_data
from jobs.results.logs import LogLine, LogListener
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.status import JobStatus
from jobs.storage.events import BATCH_ROWS
from jobs.storage.tables import JobEvent
from sft.errors import StackError

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0  # proxies close connections that are idle for a minute or so
HEARTBEAT = b": still here\n\n"
# Proxies must neither buffer nor cache a stream.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

StatusNames = Mapping[JobStatus, str]


def encode_event(event: Event) -> bytes:
    """Encode a server-sent event."""
    return format_sse_event(data_str=json.dumps(event.data, allow_nan=False), event=event.event, id=event.id)


def encode_row(row: JobEvent) -> bytes:
    """Encode an event of the database as a server-sent event."""
    return encode_event(Event(str(row.id), row.event, public_data(row.data, row.created_at)))


async def send_events(
    hub: EventHub,
    service: JobService,
    job: Job,
    after: int,
    status_names: StatusNames,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> AsyncIterator[bytes]:
    """Yield a job's events after the one with id `after`, then new ones, and last its `end`.

    Yields a comment after `heartbeat_seconds` without an event.
    """
    last_id = after
    while job.status.is_terminal:
        rows = await hub.read(service, job.id, last_id)
        yield b"".join(sent.chunk for sent in hub.encode(rows))
        if len(rows) < BATCH_ROWS:
            yield encode_event(Event(END_ID, "end", describe_end(job, status_names)))
            return
        last_id = rows[-1].id
    with hub.listening(service, job) as (channel, news):
        while not channel.is_lost:
            news.clear()
            try:
                known = await _catch_up(hub, service, channel, last_id)
            except StackError as error:
                logger.warning("A stream is waiting: %s", error)
                yield HEARTBEAT
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if known:
                last_id = known[-1].id
                if chunk := b"".join(sent.chunk for sent in known):
                    yield chunk
            elif channel.is_over:
                yield encode_event(Event(END_ID, "end", describe_end(channel.job, status_names)))
                return
            elif not await _wait_for_news(news, heartbeat_seconds):
                yield HEARTBEAT


async def _catch_up(hub: EventHub, service: JobService, channel: Channel, last_id: int) -> list[Sent]:
    """Return the events after this one: from the channel if it keeps them all, else from the database."""
    known = channel.after(last_id)
    if known is not None:
        return known
    rows = await hub.read(service, channel.job.id, last_id)
    if len(rows) < BATCH_ROWS:
        channel.start_at(rows[-1].id if rows else last_id)
    return hub.encode(rows)


async def _wait_for_news(news: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        return False
    return True


async def send_log(hub: LogHub, service: JobService, job: Job, tail: int | None) -> AsyncIterator[list[LogLine]]:
    """Yield a job's log, all or the last `tail` lines, then new lines until the job has ended."""
    listener, is_behind = LogListener(service, job, tail), True
    with hub.listening(service, job) as (channel, news):
        position = channel.position
        while True:
            news.clear()
            known = None if is_behind else channel.after(position)
            before, was_over = channel.position, channel.is_over
            try:
                lines = await hub.run(listener.read) if known is None else listener.take(known)
            except StackError as error:
                logger.warning("A stream is waiting: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            is_behind, position = False, before
            if lines:
                yield lines
            if was_over and channel.position == position:
                return
            if channel.position == position and not channel.is_over:
                await news.wait()
