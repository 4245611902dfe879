"""Follows a job: yields its events as they come, and its end even if its process died."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.service.job import Job
from jobs.status import TRAIN_STATUS_NAMES, JobStatus
from jobs.storage.events import BATCH_ROWS, read_events

if TYPE_CHECKING:
    from jobs.service.job_service import JobService

POLL_SECONDS = 1.0
STATE_SECONDS = 2.0  # how often the state of a job without new events is read
ENDING_POLL_SECONDS = 0.2  # after the process reported its end, until Prefect shows it
ENDING_SECONDS = 10.0
END_ID = "end"


class Event(NamedTuple):
    """An event as sent to clients, who resume after its `id`; the last one's id is `end`."""

    id: str
    event: str
    data: dict[str, Any]


class EventFeed:
    """A job's events in order, after the one with id `after`; the last one is `end`. Not thread-safe.

    Poll it every `pause_seconds` until it `is_over`. `end` is made from the job's status, so it also comes for a job
    whose process died or that never had one.
    """

    def __init__(
        self, service: "JobService", job: Job, after: int = 0, words: Mapping[JobStatus, str] = TRAIN_STATUS_NAMES
    ) -> None:
        self.pause_seconds = 0.0
        self.is_over = False
        self._service = service
        self._job = job
        self._words = words
        self._last_id = after
        self._state_read_at = time.monotonic()
        self._ending_until = float("-inf")

    def poll(self) -> list[Event]:
        """Return new events."""
        now = time.monotonic()
        is_ending = now < self._ending_until
        if not self._job.status.is_terminal and (is_ending or now - self._state_read_at >= STATE_SECONDS):
            self._job = self._service.get(self._job.id)
            self._state_read_at = now
        rows = read_events(self._service.engine, self._job.id, self._last_id)
        if rows:
            self._last_id = rows[-1].id
        if any(row.event == "end" for row in rows):
            is_ending, self._ending_until = True, now + ENDING_SECONDS
        events = [
            Event(str(row.id), row.event, public_data(row.data, row.created_at)) for row in rows if row.event != "end"
        ]
        is_behind = len(rows) == BATCH_ROWS
        if self._job.status.is_terminal and not is_behind:
            events.append(Event(END_ID, "end", describe_end(self._job, self._words)))
            self.is_over = True
        self.pause_seconds = 0.0 if is_behind else ENDING_POLL_SECONDS if is_ending else POLL_SECONDS
        return events


def describe_end(job: Job, words: Mapping[JobStatus, str]) -> dict[str, Any]:
    """Describe a job's end, with its status in the interface's words."""
    return {
        "time": (job.ended_at or datetime.now(UTC)).isoformat(),
        "status": words[job.status],
        "error": job.error,
        "error_code": job.error_code,
        "result": job.result,
        "output_path": job.output_path,
        "tracking_url": job.tracking_url,
    }


def public_data(data: dict[str, Any], created_at: datetime) -> dict[str, Any]:
    """The part of an event's data that clients get."""
    return {"time": created_at.isoformat(), **{key: value for key, value in data.items() if key != "recent"}}
