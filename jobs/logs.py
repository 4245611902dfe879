"""A job's log lines, as Prefect keeps them."""

import functools
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters
from prefect.client.schemas.objects import Log
from prefect.client.schemas.sorting import LogSort

from jobs.job import Job
from jobs.log_lines import escape
from jobs.prefect_client import call

if TYPE_CHECKING:
    from jobs.service import JobService

PAGE_SIZE = 200  # Prefect's cap
POLL_SECONDS = 1.0
STATE_SECONDS = 2.0
LATE_SECONDS = 5.0  # processes send their lines in batches two seconds apart, so lines come late and out of order


class LogLine(NamedTuple):
    """One record of a log, which may hold line breaks."""

    timestamp: datetime
    level: str
    logger: str
    message: str

    def to_text(self) -> str:
        r"""One line, whatever the message holds: line breaks and other control characters are escaped (`\n`)."""
        stamp = self.timestamp.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return escape(f"{stamp} {self.level:<7} {self.logger}: {self.message}") + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "timestamp": self.timestamp.astimezone(UTC).isoformat(),
            "level": self.level,
            "logger": self.logger,
            "message": self.message,
        }


def read_log(service: "JobService", job_id: UUID, tail: int | None = None) -> list[LogLine]:
    """The job's log lines in order of time, all or the last `tail`. Raises StackError when Prefect is away."""
    return [_to_line(log) for log in _read_last(service.client, service.run_ids(job_id), tail)]


class LogFeed:
    """A job's log lines, all or the last `tail` and then those that come, until the job has ended."""

    def __init__(self, service: "JobService", job: Job, tail: int | None = None) -> None:
        self.pause_seconds = POLL_SECONDS
        self.is_over = False
        self._service = service
        self._job = job
        self._tail = tail
        self._started_at: datetime | None = None  # of the first poll; nothing before the tail is sent later
        self._since = datetime.fromtimestamp(0, UTC)
        self._sent: dict[UUID, datetime] = {}
        self._state_read_at = time.monotonic()
        self._quiet_until: float | None = None

    def poll(self) -> list[LogLine]:
        """What is new."""
        now = time.monotonic()
        if not self._job.status.is_terminal and now - self._state_read_at >= STATE_SECONDS:
            self._job, self._state_read_at = self._service.get(self._job.id), now
        if self._started_at is None:
            self._started_at = datetime.now(UTC)
            found = _read_last(self._service.client, self._service.run_ids(self._job.id), self._tail)
            if self._tail is not None:
                self._since = found[0].timestamp if found else self._started_at
        else:
            found = _read_since(self._service.client, self._service.run_ids(self._job.id), self._overlap())
        new = [log for log in found if log.id not in self._sent]
        self._sent |= {log.id: log.timestamp for log in new}
        if self._job.status.is_terminal:
            self.is_over = self._has_fallen_silent(bool(new), now)
        return [_to_line(log) for log in new]

    def _overlap(self) -> datetime:
        """From when on lines may be new: a while before the newest one, as some come late."""
        newest = max(self._sent.values(), default=self._since)
        if newest <= self._since + timedelta(seconds=LATE_SECONDS):
            return self._since
        since = newest - timedelta(seconds=LATE_SECONDS)
        self._sent = {log_id: sent_at for log_id, sent_at in self._sent.items() if sent_at >= since}
        return since

    def _has_fallen_silent(self, has_news: bool, now: float) -> bool:
        ended_at = self._job.ended_at
        if ended_at and datetime.now(UTC) - ended_at > timedelta(seconds=2 * LATE_SECONDS):
            return True
        if self._quiet_until is None or has_news:
            self._quiet_until = now + LATE_SECONDS
        return now >= self._quiet_until


def _read_last(client: SyncPrefectClient, run_ids: list[UUID], tail: int | None) -> list[Log]:
    if tail is None:
        return _read_since(client, run_ids, None)
    newest_first = _read_pages(client, filters.LogFilter(flow_run_id=_of(run_ids)), LogSort.TIMESTAMP_DESC, tail)
    return newest_first[::-1]


def _read_since(client: SyncPrefectClient, run_ids: list[UUID], since: datetime | None) -> list[Log]:
    wanted = filters.LogFilter(flow_run_id=_of(run_ids), timestamp=filters.LogFilterTimestamp(after_=since))
    return _read_pages(client, wanted, LogSort.TIMESTAMP_ASC)


def _read_pages(
    client: SyncPrefectClient, wanted: filters.LogFilter, sort: LogSort, limit: int | None = None
) -> list[Log]:
    logs: dict[UUID, Log] = {}  # lines of one instant may come on two pages
    offset = 0
    while limit is None or len(logs) < limit:
        size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(logs))
        page = call(functools.partial(client.read_logs, wanted, limit=size, offset=offset, sort=sort))
        logs |= {log.id: log for log in page}
        offset += len(page)
        if len(page) < size:
            break
    return [*logs.values()]


def _of(run_ids: list[UUID]) -> filters.LogFilterFlowRunId:
    return filters.LogFilterFlowRunId(any_=run_ids)


def _to_line(log: Log) -> LogLine:
    return LogLine(log.timestamp, logging.getLevelName(log.level), log.name, log.message)
