"""Responses that go on while a job does: server-sent events and lines."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping

from fastapi.sse import format_sse_event

from api.channels import AWAY_SECONDS, Channel, EventHub, Sent
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

HEARTBEAT_SECONDS = 15.0  # proxies cut connections on which nothing is sent for a minute or so
HEARTBEAT = b": still here\n\n"
# Proxies must pass on what there is at once, and keep nothing.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Words = Mapping[JobStatus, str]


def encode_event(event: Event) -> bytes:
    """A server-sent event."""
    return format_sse_event(data_str=json.dumps(event.data, allow_nan=False), event=event.event, id=event.id)


def encode_row(row: JobEvent) -> bytes:
    """A server-sent event of what was written into the database."""
    return encode_event(Event(str(row.id), row.event, public_data(row.data, row.created_at)))


async def send_events(
    hub: EventHub,
    service: JobService,
    job: Job,
    after: int,
    words: Words,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> AsyncIterator[bytes]:
    """A job's events behind the one with id `after`, then those that come, and its end.

    A comment is sent whenever nothing was for a while.
    """
    last_id = after
    while job.status.is_terminal:
        rows = await hub.read(service, job.id, last_id)
        yield b"".join(sent.chunk for sent in hub.encode(rows))
        if len(rows) < BATCH_ROWS:
            yield encode_event(Event(END_ID, "end", describe_end(job, words)))
            return
        last_id = rows[-1].id
    with hub.listening(service, job) as (channel, news):
        while not channel.is_lost:
            news.clear()
            try:
                known = await _catch_up(hub, service, channel, last_id)
            except StackError as error:
                logger.warning("A stream waits: %s", error)
                yield HEARTBEAT
                await asyncio.sleep(AWAY_SECONDS)
                continue
            if known:
                last_id = known[-1].id
                if chunk := b"".join(sent.chunk for sent in known):
                    yield chunk
            elif channel.is_over:
                yield encode_event(Event(END_ID, "end", describe_end(channel.job, words)))
                return
            elif not await _heard(news, heartbeat_seconds):
                yield HEARTBEAT


async def _catch_up(hub: EventHub, service: JobService, channel: Channel, last_id: int) -> list[Sent]:
    """What the channel keeps behind this event, or what the database has, if that is more."""
    known = channel.after(last_id)
    if known is not None:
        return known
    rows = await hub.read(service, channel.job.id, last_id)
    if len(rows) < BATCH_ROWS:
        channel.start_at(rows[-1].id if rows else last_id)
    return hub.encode(rows)


async def _heard(news: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        return False
    return True


async def send_log(hub: LogHub, service: JobService, job: Job, tail: int | None) -> AsyncIterator[list[LogLine]]:
    """A job's log, all or the last `tail` lines, then those that come, until the job has ended."""
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
                logger.warning("A stream waits: %s", error)
                await asyncio.sleep(AWAY_SECONDS)
                continue
            is_behind, position = False, before
            if lines:
                yield lines
            if was_over and channel.position == position:
                return
            if channel.position == position and not channel.is_over:
                await news.wait()
