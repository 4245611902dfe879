"""`submit_retraining`: submit a job that retrains an adapter, unless such a job exists."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Engine, func, select

from jobs.engine.listing import JobFilters
from jobs.errors import JobNotFound
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.spec import JobSpec
from jobs.storage.connections import translate_errors

RETRAIN_LOCK = 7_415_004  # PostgreSQL advisory lock, one per adapter name
NEWEST = 50  # jobs of an adapter that are compared


class Retraining(NamedTuple):
    """The job that was submitted, or the existing one because of which none was."""

    job_id: UUID
    is_new: bool
    reason: str  # why no job was submitted; else empty
    state_name: str


def find_owner(service: JobService, job_id: str) -> UUID | None:
    """The owner of the job that trained an adapter; None if it has none or is not known."""
    try:
        return service.get(job_id).owner
    except JobNotFound:
        return None


def submit_retraining(service: JobService, spec: JobSpec, force: bool = False, owner: UUID | None = None) -> Retraining:
    """Submit a job unless a retraining of the adapter is unfinished, or one on the same data, settings and base ended.

    Args:
        spec: Must have `adapter_name` and `made_by`.
        force: Submit it even if such a job has ended, but not while one is unfinished.
        owner: Owner of the job.
    """
    assert spec.made_by is not None  # noqa: S101 - for the type checker
    name = spec.registered_name
    with _one_at_a_time(service.engine, name):
        wanted = JobFilters(adapter=name, made_by=spec.made_by.flow)
        jobs = service.list_jobs(wanted, limit=NEWEST).jobs
        if active := next((job for job in jobs if not job.status.is_terminal), None):
            reason = f"job {active.id} already retrains {name} and is {active.status.value}"
            return Retraining(active.id, False, reason, "AlreadyRetraining")
        ended = next((job for job in jobs if _fingerprint(job) == spec.made_by.fingerprint), None)
        if ended and not force:
            return Retraining(ended.id, False, _explain(ended, name), f"{ended.status.value.capitalize()}Before")
        return Retraining(service.submit(spec, owner=owner).id, True, "", "Retraining")


def _fingerprint(job: Job) -> str | None:
    return job.spec.made_by.fingerprint if job.spec and job.spec.made_by else None


def _explain(job: Job, name: str) -> str:
    error = "; ".join((job.error or "").splitlines())
    status = f"{job.status.value} ({job.error_code}: {error})" if error else job.status.value
    return (
        f"job {job.id} already retrained {name} on the same data, settings and base model and is {status}; to submit "
        "it again, run retrain with force"
    )


@contextmanager
def _one_at_a_time(engine: Engine, name: str) -> Iterator[None]:
    """Hold the adapter's lock during the block; it is released with the transaction."""
    with translate_errors(), engine.begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(RETRAIN_LOCK, zlib.crc32(name.encode()) - 2**31)))
        yield
