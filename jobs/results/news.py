"""Reads new events of many jobs with one query."""

from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, Engine, Uuid, cast, column, func, literal, select, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session, aliased

from jobs.storage.events import BATCH_ROWS
from jobs.storage.tables import JobEvent, JobReport


class News(NamedTuple):
    """New events by job, in order and at most `BATCH_ROWS` each, and the jobs that have ended."""

    events: dict[UUID, list[JobEvent]]
    ended: set[UUID]


def read_news(engine: Engine, seen: Mapping[UUID, int]) -> News:
    """Read the events of these jobs after the events with these ids."""
    job_ids = cast(literal([*seen], ARRAY(Uuid)), ARRAY(Uuid))
    seen_ids = cast(literal([*seen.values()], ARRAY(BigInteger)), ARRAY(BigInteger))
    columns = (column("job_id", Uuid), column("seen", BigInteger))
    asked = func.unnest(job_ids, seen_ids).table_valued(*columns, name="asked").render_derived()
    newer = (
        select(JobEvent)
        .where(JobEvent.job_id == asked.c.job_id, JobEvent.id > asked.c.seen)
        .order_by(JobEvent.id)
        .limit(BATCH_ROWS)
        .lateral("newer")
    )
    event = aliased(JobEvent, newer)
    wanted = select(event).select_from(asked.join(newer, true())).order_by(event.id)
    has_ended = select(JobReport.job_id).where(JobReport.job_id == func.any(job_ids), JobReport.status.is_not(None))
    events: dict[UUID, list[JobEvent]] = {}
    with Session(engine, expire_on_commit=False) as session:
        ended = {*session.scalars(has_ended)}  # read first, so that all events before an end are read with it
        for row in session.scalars(wanted):
            events.setdefault(row.job_id, []).append(row)
    return News(events, ended)
