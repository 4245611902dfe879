"""Read jobs from Prefect's runs, the queue and the database."""

from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.types._datetime import now
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from jobs.engine.job_queue import JobQueue
from jobs.engine.listing import Cursor, JobFilters, Listing
from jobs.engine.runs import PrefectRuns
from jobs.errors import JobNotFound
from jobs.lifecycle.attempts import read_jobs
from jobs.lifecycle.ends import settle
from jobs.service.job import Job, job_from_report, job_from_run
from jobs.spec import owner_tag
from jobs.status import JobStatus, status_of
from jobs.storage.claims import is_denied
from jobs.storage.connections import autocommit, translate_errors
from jobs.storage.reports import is_owned, read_reports
from jobs.storage.run_ids import RunIds
from jobs.storage.tables import JobReport
from jobs.vocabulary import FINAL_STATES

RECENT = timedelta(minutes=5)


class JobPage(NamedTuple):
    """One page of a list, and the cursor of the next one."""

    jobs: list[Job]
    next_cursor: str | None


class JobReader:
    """Read jobs. Thread-safe. Raises StackError if Prefect or the database can't be reached."""

    def __init__(self, engine: Engine, runs: PrefectRuns, queue: JobQueue) -> None:
        self._engine = engine
        self._runs = runs
        self._queue = queue
        self._listing = Listing(runs, queue)

    def get(self, job_id: UUID | str, owner: UUID | None = None) -> Job:
        """Get a job, also one whose run was deleted.

        Raises:
            JobNotFound: the id is unknown or invalid, or the job is not this owner's.
        """
        ids = self._runs.read_ids()
        try:
            return self.describe_all([self._runs.get(job_id, ids, owner)], ids)[0]
        except JobNotFound:
            if job := self.find_kept(job_id, owner):
                return job
            raise

    def read_page(
        self, wanted: JobFilters | None = None, limit: int | None = None, cursor: str | None = None
    ) -> JobPage:
        """List jobs, newest first: all of them, or the first `limit` after the cursor of the previous page.

        Raises:
            InvalidConfig: the cursor is invalid.
        """
        start = Cursor.decode(cursor) if cursor is not None else None
        wanted = wanted or JobFilters()
        runs, following = self._listing.page(wanted, start, limit)
        jobs = self.describe_all(runs)
        if wanted.statuses is not None:  # Prefect's state of an ended job may be wrong until it is corrected
            jobs = [job for job in jobs if job.status in wanted.statuses or not job.status.is_terminal]
        return JobPage(jobs, following.encode() if following else None)

    def describe(self, run: FlowRun) -> Job:
        """Build the job of a run."""
        return self.describe_all([run])[0]

    def describe_all(self, runs: list[FlowRun], ids: RunIds | None = None) -> list[Job]:
        """Build the jobs of runs."""
        places = self._queue.places(runs, ids)
        with translate_errors():
            with autocommit(self._engine) as connection:
                reports, attempts = read_jobs(connection, [run.id for run in runs])
            if unsettled := [run for run in runs if _has_just_ended(run) and not _has_status(reports.get(run.id))]:
                self._settle(unsettled)
                reports |= read_reports(self._engine, [run.id for run in unsettled])
        jobs = [
            job_from_run(run, *read_state(run, places.get(run.id)), reports.get(run.id), attempts.get(run.id))
            for run in runs
        ]
        return [
            replace(job, waiting_for=self._queue.blocker_of(run)) if job.status is JobStatus.QUEUED else job
            for job, run in zip(jobs, runs, strict=True)
        ]

    def find_kept(self, job_id: UUID | str, owner: UUID | None = None) -> Job | None:
        """Find a job whose run was deleted; None if it is unknown, or not this owner's."""
        try:
            parsed = job_id if isinstance(job_id, UUID) else UUID(job_id)
        except ValueError:
            return None
        with translate_errors(), autocommit(self._engine) as connection:
            if owner is not None and not is_owned(connection, parsed, owner_tag(owner)):
                return None
            reports, attempts = read_jobs(connection, [parsed])
        report = reports.get(parsed)
        return job_from_report(parsed, report, attempts.get(parsed)) if report else None

    def _settle(self, unsettled: list[FlowRun]) -> None:
        """Write the final status of ended jobs that did not report it, so that it can't change later."""
        for run in unsettled:
            assert run.state is not None  # noqa: S101 - it has ended
            facts = run.model_dump(mode="json") | {"state_type": run.state.type.value}
            try:
                with self._engine.begin() as connection:
                    settle(connection, facts)
            except OperationalError:  # the job is registering
                continue
            except ProgrammingError as error:  # this process is a trainer; the watchdog writes it
                if not is_denied(error):
                    raise


def read_state(run: FlowRun, place: int | None) -> tuple[JobStatus, int | None]:
    """Status and queue position of a run at a place in the queue; with 0 or less a slot is free for it."""
    has_free_slot = place is not None and place <= 0
    state = run.state
    status = status_of(state.type.value, state.name or "", has_free_slot) if state else JobStatus.CREATED
    return status, place if status is JobStatus.QUEUED and place is not None else None


def _has_just_ended(run: FlowRun) -> bool:
    """Whether a run ended within RECENT; the watchdog has written the status of earlier ones."""
    is_final = run.state is not None and run.state.type.value in FINAL_STATES
    return is_final and run.end_time is not None and now("UTC") - run.end_time < RECENT


def _has_status(report: JobReport | None) -> bool:
    """Whether the final status was written."""
    return report is not None and report.status is not None
