"""Calls callbacks in this process for the events of jobs that run elsewhere."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.exc import OperationalError

from jobs.results.feed import EventFeed
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.status import SFT_STATUS_NAMES
from sft.callbacks import SFTCallback, send_to_callbacks
from sft.config import SFTConfig
from sft.errors import StackError

logger = logging.getLogger(__name__)

AWAY_SECONDS = 5.0


@dataclass(frozen=True)
class JobHandle:
    """The `trainer` argument of a callback: the job's id and config."""

    job_id: str
    config: SFTConfig


def start_callbacks(
    service: JobService, job: Job, config: SFTConfig, callbacks: Sequence[SFTCallback], closing: threading.Event
) -> threading.Thread:
    """Call these for the job's events, from first to last, on a thread that ends with the job.

    `on_step_end` is called at most once a second, `on_train_end` once, however the job ends. The thread is a daemon, so
    it does not keep the process alive. It also ends once `closing` is set.
    """
    handle = JobHandle(str(job.id), config)
    name = f"callbacks-{job.id}"
    arguments = (service, job, handle, callbacks, closing)
    thread = threading.Thread(target=_follow, args=arguments, name=name, daemon=True)
    thread.start()
    return thread


def _follow(
    service: JobService, job: Job, handle: JobHandle, callbacks: Sequence[SFTCallback], closing: threading.Event
) -> None:
    send = send_to_callbacks(callbacks, handle)
    feed = EventFeed(service, job, words=SFT_STATUS_NAMES)
    while not feed.is_over and not closing.is_set():
        try:
            events = feed.poll()
        except (StackError, OperationalError) as error:
            logger.warning("The callbacks of job %s wait: %s", job.id, error)
            closing.wait(AWAY_SECONDS)
            continue
        for event in events:
            send(event.event, event.data)
        if not feed.is_over:
            closing.wait(feed.pause_seconds)
