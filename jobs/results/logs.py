"""Reads and follows a job's log in Prefect."""

import functools
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters
from prefect.client.schemas.objects import Log
from prefect.client.schemas.sorting import LogSort

from jobs.engine.prefect_client import call
from jobs.service.job import Job
from jobs.vocabulary import PAGE_SIZE
from tuneyard_wire.one_line import escape

if TYPE_CHECKING:
    from jobs.service.job_service import JobService

STATE_SECONDS = 2.0
LATE_SECONDS = 5.0  # processes send lines in batches every two seconds, so lines arrive late and out of order
REMEMBERED_SECONDS = 60.0  # longer than a feed can lag behind its listeners' own reads
REMEMBERED = 1000
BEGINNING = datetime.fromtimestamp(0, UTC)


class LogLine(NamedTuple):
    """One log record, which may contain line breaks."""

    timestamp: datetime
    level: str
    logger: str
    message: str

    def to_text(self) -> str:
        r"""Format as one line: line breaks and other control characters are escaped (`\n`)."""
        stamp = self.timestamp.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return escape(f"{stamp} {self.level:<7} {self.logger}: {self.message}") + "\n"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "timestamp": self.timestamp.astimezone(UTC).isoformat(),
            "level": self.level,
            "logger": self.logger,
            "message": self.message,
        }


def read_log(service: "JobService", job_id: UUID, tail: int | None = None) -> list[LogLine]:
    """Read the job's log lines in order of time, all or the last `tail`. Raises StackError if Prefect is down."""
    return [_to_line(log) for log in _read_last(service.client, service.run_ids(job_id), tail)]


class LogFeed:
    """New lines of a job's log, from the first poll until the job has ended; shared by all listeners."""

    def __init__(self, service: "JobService", job: Job) -> None:
        self.is_over = False
        self._service = service
        self._job = job
        self._known: _Known | None = None
        self._state_read_at = time.monotonic()
        self._quiet_until: float | None = None

    def poll(self) -> list[Log]:
        """Return new lines; the first time also the newest old ones. Raises StackError if Prefect is down."""
        now = time.monotonic()
        if not self._job.status.is_terminal and now - self._state_read_at >= STATE_SECONDS:
            self._job, self._state_read_at = self._service.get(self._job.id), now
        client, run_ids = self._service.client, self._service.run_ids(self._job.id)
        known = self._known or _Known()
        new = [] if self._known else known.add(_read_last(client, run_ids, 1))
        new += known.add(_read_since(client, run_ids, known.late))
        self._known = known
        if self._job.status.is_terminal:
            self.is_over = self._has_fallen_silent(bool(new), now)
        return new

    def _has_fallen_silent(self, has_news: bool, now: float) -> bool:
        ended_at = self._job.ended_at
        if ended_at and datetime.now(UTC) - ended_at > timedelta(seconds=2 * LATE_SECONDS):
            return True
        if self._quiet_until is None or has_news:
            self._quiet_until = now + LATE_SECONDS
        return now >= self._quiet_until


class LogListener:
    """Selects the lines for one follower of a log: all lines or the last `tail`, then new ones."""

    def __init__(self, service: "JobService", job: Job, tail: int | None = None) -> None:
        self._service = service
        self._job = job
        self._tail = tail
        self._known: _Known | None = None

    def read(self) -> list[LogLine]:
        """Read the log so far, or later what a feed no longer has. Raises StackError if Prefect is down."""
        client, run_ids = self._service.client, self._service.run_ids(self._job.id)
        if self._known is None:
            found = _read_last(client, run_ids, self._tail)
            since = BEGINNING
            if self._tail is not None:  # lines before the tail are never sent
                since = found[0].timestamp if found else datetime.now(UTC)
            self._known = _Known(since)
        else:
            found = _read_since(client, run_ids, self._known.late)
        return [_to_line(log) for log in self._known.add(found)]

    def take(self, logs: Iterable[Log]) -> list[LogLine]:
        """Return those of a feed's lines that were not sent yet."""
        return [_to_line(log) for log in self._known.add(logs)] if self._known else []


class _Known:
    """The lines already sent that a later read may return again."""

    def __init__(self, since: datetime = BEGINNING) -> None:
        self._since = since
        self._newest = since
        self._sent: dict[UUID, datetime] = {}

    @property
    def late(self) -> datetime:
        """The time from which lines may be new: a while before the newest one, as some arrive late."""
        return max(self._since, self._newest - timedelta(seconds=LATE_SECONDS)) if self._sent else self._since

    def add(self, logs: Iterable[Log]) -> list[Log]:
        """Return those that are new, and remember them."""
        new = [log for log in logs if log.id not in self._sent and log.timestamp >= self._since]
        self._sent |= {log.id: log.timestamp for log in new}
        self._newest = max([self._newest, *(log.timestamp for log in new)])
        if len(self._sent) > REMEMBERED:
            known_from = self._newest - timedelta(seconds=REMEMBERED_SECONDS)
            self._sent = {log_id: sent_at for log_id, sent_at in self._sent.items() if sent_at >= known_from}
        return new


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
    logs: dict[UUID, Log] = {}  # by id, as lines of the same time may be on two pages
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
