"""Periodic task: tags the runs of jobs that keys submitted before jobs had owners, so that lists find them."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, Row, cast, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH

from jobs.engine.pool_runs import PoolRuns
from jobs.spec import OWNER_PREFIX, owner_tag
from jobs.storage.tables import JobReport
from jobs.webhooks.outbox import CLIENT

logger = logging.getLogger(__name__)

BATCH_JOBS = 50
KEY_PREFIX = "key "  # of clients that sent a key

_HAS_OWNER = func.jsonb_path_exists(JobReport.run, cast(f'$.tags[*] ? (@ starts with "{OWNER_PREFIX}")', JSONPATH))
_CLIENT = JobReport.run[CLIENT].astext
_UNTAGGED = (
    select(JobReport.job_id, JobReport.run)
    .where(_CLIENT.startswith(KEY_PREFIX), ~_HAS_OWNER)
    .order_by(JobReport.job_id)
)


class OwnerTags:
    """Tags the jobs in batches, until there are none left."""

    def __init__(self, engine: Engine, runs: PoolRuns) -> None:
        self._engine = engine
        self._runs = runs
        self._is_done = False

    def look(self) -> None:
        """Run the task once. Raises SQLAlchemyError and httpx.HTTPError."""
        if self._is_done:
            return
        with self._engine.connect() as connection:
            reports = connection.execute(_UNTAGGED.limit(BATCH_JOBS)).all()
        self._tag(reports)
        self._is_done = len(reports) < BATCH_JOBS
        if reports:
            logger.info("Tagged %s jobs with the keys that submitted them", len(reports))

    def _tag(self, reports: Iterable[Row[tuple[UUID, dict[str, Any]]]]) -> None:
        runs = self._runs.find_by_id([job_id for job_id, _ in reports])
        for job_id, facts in reports:
            run = runs.get(job_id)
            tags = {*(run or facts).get("tags", ()), _tag_of(facts[CLIENT])}
            if run is not None:
                self._runs.set_tags(str(job_id), tags)
            kept = JobReport.run + literal({"tags": sorted(tags)}, JSONB)  # it may have other facts by now
            with self._engine.begin() as connection:
                connection.execute(update(JobReport).where(JobReport.job_id == job_id).values(run=kept))


def _tag_of(client: str) -> str:
    """The owner's tag; for a client without a key a tag that nobody owns, so that the job is not checked again."""
    with suppress(ValueError):
        return owner_tag(UUID(client.removeprefix(KEY_PREFIX)))
    return f"{OWNER_PREFIX}unknown"
