"""Answers that go on while a job does: server-sent events and lines."""

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import TypeVar

import anyio
from fastapi.sse import format_sse_event
from sqlalchemy.exc import OperationalError
from starlette.concurrency import run_in_threadpool

from jobs.feed import Event, Feed
from sft.errors import StackError

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 15.0  # proxies cut connections on which nothing is sent for a minute or so
AWAY_SECONDS = 3.0
HEARTBEAT = b": still here\n\n"
# Proxies must pass on what there is at once, and keep nothing.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

T = TypeVar("T")


async def follow(feed: Feed[T]) -> AsyncIterator[list[T]]:
    """What a feed has to say, perhaps nothing, each time it is asked, until it is over.

    A thread is taken for each question only. A server that is away for a while is asked again.
    """
    while not feed.is_over:
        try:
            news = await run_in_threadpool(feed.poll)
        except (StackError, OperationalError) as error:
            logger.warning("A stream waits: %s", error)
            yield []
            await anyio.sleep(AWAY_SECONDS)
            continue
        yield news
        if not feed.is_over:
            await anyio.sleep(feed.pause_seconds)


async def send_events(feed: Feed[Event], heartbeat_seconds: float = HEARTBEAT_SECONDS) -> AsyncIterator[bytes]:
    """A feed as server-sent events, with a comment whenever nothing was sent for a while."""
    sent_at = time.monotonic()
    async for events in follow(feed):
        for event in events:
            data = json.dumps(event.data, allow_nan=False)
            yield format_sse_event(data_str=data, event=event.event, id=event.id)
        if events or time.monotonic() - sent_at >= heartbeat_seconds:
            if not events:
                yield HEARTBEAT
            sent_at = time.monotonic()
