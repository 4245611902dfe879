"""What a running job reports of itself, and how others read it: rows of `job_reports`."""

import time
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.store import JobReport


def write_report(engine: Engine, job_id: UUID, **fields: Any) -> None:
    """Set these columns of the job's report, making it if need be."""
    statement = insert(JobReport).values(job_id=job_id, **fields)
    with engine.begin() as connection:
        connection.execute(statement.on_conflict_do_update(index_elements=["job_id"], set_=fields))


def read_reports(engine: Engine, job_ids: list[UUID]) -> dict[UUID, JobReport]:
    """The reports of these jobs, by id; a job that has not reported yet is absent."""
    with Session(engine, expire_on_commit=False) as session:
        reports = session.scalars(select(JobReport).where(JobReport.job_id.in_(job_ids))).all()
        return {report.job_id: report for report in reports}


class ProgressWriter:
    """Writes a job's training progress at most once in `min_interval_seconds`; the last step is never left out."""

    def __init__(self, engine: Engine, job_id: UUID, min_interval_seconds: float = 1.0) -> None:
        self.engine = engine
        self.job_id = job_id
        self.min_interval_seconds = min_interval_seconds
        self._written_at = float("-inf")

    def __call__(self, progress: dict[str, Any]) -> None:
        """Report `step, total_steps, percent, epoch, loss, tokens_per_second, eta_seconds`."""
        now = time.monotonic()
        if now - self._written_at < self.min_interval_seconds and progress["step"] < progress["total_steps"]:
            return
        write_report(self.engine, self.job_id, progress=progress)
        self._written_at = now
