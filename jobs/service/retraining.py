"""`submit_retraining`: a job that trains an adapter anew, unless there is one or has been one for the same reason."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Engine, func, select

from jobs.engine.listing import JobFilters
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.spec import JobSpec
from jobs.storage.connections import translate_errors

RETRAIN_LOCK = 7_415_004  # PostgreSQL advisory lock, one for each adapter's name: looks come one after the other
NEWEST = 50  # jobs of an adapter that are looked at


class Retraining(NamedTuple):
    """What became of a look: the job it has made, or the one because of which it made none."""

    job_id: UUID
    is_new: bool
    reason: str  # in a sentence, where none was made
    state_name: str


def submit_retraining(service: JobService, spec: JobSpec, force: bool = False) -> Retraining:
    """Submit the job unless one that a look made is in flight, or has ended on the same data, settings and base.

    Args:
        spec: has `adapter_name` and `made_by`.
        force: submit it though such a job has ended; never beside one that is in flight.
    """
    assert spec.made_by is not None  # noqa: S101 - for the type checker
    name = spec.registered_name
    with _one_at_a_time(service.engine, name):
        wanted = JobFilters(adapter=name, made_by=spec.made_by.flow)
        jobs = service.list_jobs(wanted, limit=NEWEST).jobs
        if flying := next((job for job in jobs if not job.status.is_terminal), None):
            reason = f"job {flying.id} already retrains {name} and is {flying.status.value}; no second one is made"
            return Retraining(flying.id, False, reason, "AlreadyRetraining")
        ended = next((job for job in jobs if _fingerprint(job) == spec.made_by.fingerprint), None)
        if ended and not force:
            return Retraining(ended.id, False, _explain(ended, name), f"{ended.status.value.capitalize()}Before")
        return Retraining(service.submit(spec).id, True, "", "Retraining")


def _fingerprint(job: Job) -> str | None:
    return job.spec.made_by.fingerprint if job.spec and job.spec.made_by else None


def _explain(job: Job, name: str) -> str:
    said = "; ".join((job.error or "").splitlines())
    how = f"{job.status.value} ({job.error_code}: {said})" if said else job.status.value
    return (
        f"job {job.id} has retrained {name} on the same data, settings and base model and is {how}; to submit it "
        "again, run retrain with force"
    )


@contextmanager
def _one_at_a_time(engine: Engine, name: str) -> Iterator[None]:
    """Held until the transaction ends, or its process does."""
    with translate_errors(), engine.begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(RETRAIN_LOCK, zlib.crc32(name.encode()) - 2**31)))
        yield
