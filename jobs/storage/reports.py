"""Writes and reads the reports of jobs: rows of `job_reports`."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.storage.events import STEP_SERIES, drop_non_finite, write_event
from jobs.storage.tables import JobReport

Writing = Callable[[], AbstractContextManager[Connection]]


def write_report(engine: Engine, job_id: UUID, **fields: Any) -> None:
    """Set these columns of the job's report, creating it if needed."""
    with engine.begin() as connection:
        set_report(connection, job_id, **fields)


def set_report(connection: Connection, job_id: UUID, **fields: Any) -> None:
    """`write_report` in a transaction. The report of an ended job is not changed."""
    statement = insert(JobReport).values(job_id=job_id, **fields)
    is_open = JobReport.status.is_(None)
    connection.execute(statement.on_conflict_do_update(index_elements=["job_id"], set_=fields, where=is_open))


def read_reports(database: Engine | Connection, job_ids: list[UUID]) -> dict[UUID, JobReport]:
    """The reports of these jobs, by id; a job that has not reported yet is absent."""
    with Session(database, expire_on_commit=False) as session:
        reports = session.scalars(select(JobReport).where(JobReport.job_id.in_(job_ids))).all()
        return {report.job_id: report for report in reports}


def is_owned(connection: Connection, job_id: UUID, owner_tag: str) -> bool:
    """Whether the job's run had this tag when it was first seen."""
    has_tag = JobReport.run["tags"].contains([owner_tag])
    return connection.execute(select(JobReport.job_id).where(JobReport.job_id == job_id, has_tag)).first() is not None


class ProgressWriter:
    """Writes a job's training progress at most once in `min_interval_seconds`, and always the last step.

    Each write is also a `step` event, whose `recent` lists every step since the one before it.

    Args:
        writing: opens a transaction, such as `Engine.begin` or `Attempt.writing`.
    """

    def __init__(self, writing: Writing, job_id: UUID, min_interval_seconds: float = 1.0) -> None:
        self._writing = writing
        self.job_id = job_id
        self.min_interval_seconds = min_interval_seconds
        self._written_at = float("-inf")
        self._newest: dict[str, Any] = {}
        self._kept_back: dict[str, Any] | None = None
        self._recent: list[list[Any]] = []

    def __call__(self, progress: dict[str, Any]) -> None:
        """Report `step, total_steps, percent, epoch, loss, tokens_per_second, eta_seconds`."""
        self._newest = self._kept_back = progress = drop_non_finite(progress)
        self._recent.append([progress.get(name) for name in STEP_SERIES])
        is_due = time.monotonic() - self._written_at >= self.min_interval_seconds
        if is_due or progress["step"] >= progress["total_steps"]:
            self.flush()

    def flush(self) -> None:
        """Write pending progress."""
        if self._kept_back is None:
            return
        with self._writing() as connection:
            set_report(connection, self.job_id, progress=self._kept_back)
            write_event(connection, self.job_id, "step", self._kept_back | {"recent": self._recent})
        self._kept_back, self._recent = None, []
        self._written_at = time.monotonic()

    def finish(self) -> None:
        """Write the end of training: no time is left, even if it stopped before `total_steps`, which stay."""
        self.flush()
        if self._newest and self._newest["step"] < self._newest["total_steps"]:
            self._newest |= {"percent": 100.0, "eta_seconds": 0.0}
            with self._writing() as connection:
                set_report(connection, self.job_id, progress=self._newest)
