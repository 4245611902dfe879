"""Writes and reads a job's events, which clients replay and follow."""

import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Engine, delete, insert, select
from sqlalchemy.orm import Session

from jobs.storage.tables import JobEvent, JobReport

BATCH_ROWS = 500
BATCH_JOBS = 500
# The values in `recent` of a step event, for every optimizer step since the previous event.
STEP_SERIES = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second")


def write_event(connection: Connection, job_id: UUID, event: str, data: dict[str, Any]) -> None:
    """Add an event.

    One of `phase`, `begin`, `step`, `epoch`, `evaluate`, `checkpoint`, `stored` (a checkpoint has reached the store),
    `restart` (at an earlier step than that of a checkpoint), `lacking` (a host leaves the job to others), `merge`
    (how merging ended) and `end`, when the process ends.
    """
    connection.execute(insert(JobEvent).values(job_id=job_id, event=event, data=drop_non_finite(data)))


def count_deaths(connection: Connection, job_id: UUID, phase: str) -> int:
    """How many of a job's processes have ended without a word in this phase, as those that are killed do."""
    kinds = JobEvent.event.in_(["phase", "end"])
    wanted = select(JobEvent.data["phase"].astext).where(JobEvent.job_id == job_id, kinds)
    phases = [*connection.execute(wanted.order_by(JobEvent.id)).scalars()]  # None for the end of a process
    return sum(left == phase and entered == "starting" for left, entered in pairwise(phases))


class LastCheckpoint(NamedTuple):
    """The highest step of which a job reported a checkpoint, and the host on whose disk it was written."""

    step: int
    host: str | None


def find_last_checkpoint(connection: Connection, job_id: UUID) -> LastCheckpoint | None:
    """The last checkpoint that a job reported; None without any."""
    step = JobEvent.data["step"].as_integer()
    wanted = select(step, JobEvent.data["host"].astext).where(JobEvent.job_id == job_id, JobEvent.event == "checkpoint")
    row = connection.execute(wanted.order_by(step.desc(), JobEvent.id.desc()).limit(1)).first()
    return LastCheckpoint(*row) if row else None


def forget_old_events(engine: Engine, days: int) -> int:
    """Delete the events of jobs without news for so many days, of at most 500 jobs; returns their number."""
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
    """A copy with None for NaN and infinity, which JSON does not have."""
    return {key: None if _is_non_finite(value) else value for key, value in values.items()}


def _is_non_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
