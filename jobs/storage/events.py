"""What happens in a job, as rows that others replay and follow."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, delete, insert, select
from sqlalchemy.orm import Session

from jobs.storage.tables import JobEvent, JobReport

BATCH_ROWS = 500
BATCH_JOBS = 500
# What `recent` of a step event lists for every optimizer step since the event before.
STEP_SERIES = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second")


def write_event(connection: Connection, job_id: UUID, event: str, data: dict[str, Any]) -> None:
    """Add an event: `phase`, `begin`, `step`, `epoch`, `evaluate`, `checkpoint`, or `end` when the process ends."""
    connection.execute(insert(JobEvent).values(job_id=job_id, event=event, data=drop_non_finite(data)))


def forget_old_events(engine: Engine, days: int) -> int:
    """Remove the events of jobs of which nothing was heard for so many days; how many jobs that were, 500 at most."""
    before = datetime.now(UTC) - timedelta(days=days)
    newest = select(JobEvent.created_at).where(JobEvent.job_id == JobReport.job_id)
    newest_at = newest.order_by(JobEvent.id.desc()).limit(1).scalar_subquery()
    wanted = select(JobReport.job_id).where(JobReport.updated_at < before, newest_at < before).limit(BATCH_JOBS)
    with engine.begin() as connection:
        old = [*connection.execute(wanted).scalars()]
        connection.execute(delete(JobEvent).where(JobEvent.job_id.in_(old)))
    return len(old)


def read_events(engine: Engine, job_id: UUID, after: int = 0, limit: int = BATCH_ROWS) -> list[JobEvent]:
    """A job's events with an id above `after`, in order, at most `limit` of them."""
    wanted = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after)
    with Session(engine, expire_on_commit=False) as session:
        return [*session.scalars(wanted.order_by(JobEvent.id).limit(limit))]


def drop_non_finite(values: dict[str, Any]) -> dict[str, Any]:
    """A copy in which NaN and infinity are None: JSON has neither."""
    return {key: None if _is_non_finite(value) else value for key, value in values.items()}


def _is_non_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
