"""`JobService`: submit, follow, list and cancel jobs."""

from contextlib import ExitStack
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Cancelling, Paused, Scheduled
from prefect.types._datetime import now

from jobs.clients.configs import ConfigStore
from jobs.clients.idempotency import RequestKey
from jobs.engine.job_queue import JobQueue, Queue
from jobs.engine.listing import JobFilters
from jobs.engine.prefect_client import open_prefect_client
from jobs.engine.runs import PrefectRuns
from jobs.errors import JobConflict, JobNotFound
from jobs.lifecycle.attempts import mark_cancelled
from jobs.network.deadlines import WRITE_SECONDS, allow
from jobs.preflight import NO_CHECK, Preflight, SubmissionCheck
from jobs.service.job import Job
from jobs.service.job_reader import JobPage, JobReader
from jobs.service.submission import Submission, SubmissionLock
from jobs.service.submitter import Submitter, Wanted, facts_of
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import JobStatus
from jobs.storage.bounded_postgres import bounded_engine_for
from jobs.storage.connections import translate_errors
from jobs.vocabulary import StateName
from jobs.webhooks.targets import check_target
from sft.errors import StackError
from tuneyard_wire.fields import Priority, Strategy


class JobService:
    """Jobs of one Prefect server. Thread-safe; a process needs only one.

    Every method raises StackError if Prefect or the database can't be reached.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.prefect_api_url is None or settings.database_url is None:
            raise StackError("prefect_api_url and database_url must be set; call jobs.stack.local.ensure_up first")
        self.settings = settings
        self.engine = bounded_engine_for(settings.database_url)
        self._opened = ExitStack()
        self.client = self._opened.enter_context(open_prefect_client(settings))
        self.configs = ConfigStore(self.engine)
        self._runs = PrefectRuns(self.client, settings.work_pool, self.engine)
        self.preflight = Preflight(settings)
        self._queue = JobQueue(self._runs)
        self._reader = JobReader(self.engine, self._runs, self._queue)
        self._lock = SubmissionLock(self.engine)
        self._submitter = Submitter(self.engine, self._runs, self._queue, self._lock)

    def close(self) -> None:
        """Close the connections to Prefect. The service can't be used afterwards."""
        self._opened.close()

    # -- create and end jobs

    @allow(WRITE_SECONDS)
    def submit(
        self,
        spec: JobSpec,
        strategy: Strategy = "queue",
        priority: Priority = "normal",
        request: RequestKey | None = None,
        check: SubmissionCheck = NO_CHECK,
        client: str = "",
        owner: UUID | None = None,
    ) -> Submission:
        """Create a job and queue it. A repeated `request` gets the first response and creates no job.

        Args:
            request: The idempotency key, if there is one.
            check: The checks before submission; findings are warnings in the response, or an error.
            client: Who sent the request, so that the webhooks of one client do not delay those of another.
            owner: The API key to which the job belongs; None if only admin keys may see it.

        Raises:
            TuneyardError: `check.refusal`, if there is one.
            TrainingBusy: `strategy` is "reject" and a job is running or queued.
            IdempotencyKeyReused: the key was used with another body.
            InvalidConfig: the webhook's address is neither public nor allowed.
        """
        self._check_webhook(spec)
        if request is not None:
            check.collect()  # before the lock is taken, so that other submissions do not wait
        elif refusal := check.refusal:
            raise refusal
        return self._submitter.submit(Wanted(spec, strategy, priority, request, check, client, owner))

    @allow(WRITE_SECONDS)
    def create(self, spec: JobSpec, priority: Priority = "normal") -> Job:
        """Create a job that waits until `start` is called. Raises InvalidConfig like `submit`."""
        self._check_webhook(spec)
        run = self._submitter.create(spec, Paused(name=StateName.CREATED, timeout_seconds=None), priority)
        self._submitter.keep(run)
        return self._reader.describe(run)

    @allow(WRITE_SECONDS)
    def start(self, job_id: UUID | str) -> Job:
        """Queue a created job. No effect on a job that was started before."""
        with self._lock.taken():
            run = self._runs.get(job_id)
            if _is_created(run):
                self._runs.propose(run.id, Scheduled(scheduled_time=now("UTC")), force=True)
                run = self._runs.get(job_id)
        return self._reader.describe(run)

    @allow(WRITE_SECONDS)
    def cancel(self, job_id: UUID | str, owner: UUID | None = None) -> Job:
        """Cancel a job: a queued one at once, a running one as soon as its process has ended.

        Raises:
            JobNotFound: the id is unknown, or the job is not this owner's.
            JobConflict: the job has already ended.
        """
        try:
            run = self._runs.get(job_id, owner=owner)
        except JobNotFound:
            return self._cancel_kept(job_id, owner)
        self._check_not_ended(run)
        if run.state and run.state.type is StateType.PAUSED:
            with self._lock.taken():  # excludes a concurrent `start`
                run = self._runs.get(job_id)
                if run.state and run.state.type is StateType.PAUSED:
                    self._mark_cancelled(run.id, run)
                    self._runs.propose(run.id, Cancelled())
                    return self._reader.describe(self._runs.get(job_id))
        self._mark_cancelled(run.id, run)  # from here on no attempt starts
        run = self._runs.get(job_id)
        self._check_not_ended(run)
        return self._cancel_started(run)

    @allow(WRITE_SECONDS)
    def stop(self, job_id: UUID | str, owner: UUID | None = None) -> Job:
        """`cancel` that accepts a job that is already cancelled."""
        try:
            return self.cancel(job_id, owner)
        except JobConflict:
            job = self.get(job_id, owner)
            if job.status is JobStatus.CANCELLED:
                return job
            raise

    # -- read jobs

    def get(self, job_id: UUID | str, owner: UUID | None = None) -> Job:
        """Get a job, also one whose run was deleted.

        Raises:
            JobNotFound: the id is unknown or invalid, or the job is not this owner's.
        """
        return self._reader.get(job_id, owner)

    def list_jobs(
        self, wanted: JobFilters | None = None, limit: int | None = None, cursor: str | None = None
    ) -> JobPage:
        """List jobs, newest first: all of them, or the first `limit` after the cursor of the previous page.

        Raises:
            InvalidConfig: the cursor is invalid.
        """
        return self._reader.read_page(wanted, limit, cursor)

    def queue(self, owner: UUID | None = None) -> Queue:
        """Read the queue; jobs of others than this owner are only counted."""
        return self._queue.read(owner)

    def run_ids(self, job_id: UUID) -> list[UUID]:
        """Ids of the job's Prefect runs: two if the first one was lost while it was queued."""
        return [*{job_id, self._runs.read_ids().run_of(job_id)}]

    # -- internal

    def _check_webhook(self, spec: JobSpec) -> None:
        if spec.webhook_url:
            check_target(spec.webhook_url, self.settings.webhook_allow)

    def _check_not_ended(self, run: FlowRun) -> None:
        job = self._reader.describe(run)
        is_final = run.state is not None and run.state.is_final()
        if job.status.is_terminal and (is_final or job.status is not JobStatus.CANCELLED):
            raise self._conflict(job)

    def _conflict(self, job: Job) -> JobConflict:
        how = f"is already {job.status}" if job.status is JobStatus.CANCELLED else f"has already {job.status}"
        return JobConflict(f"Job {job.id} {how}; only a job that has not ended can be cancelled")

    def _mark_cancelled(self, job_id: UUID, run: FlowRun | None = None) -> None:
        with translate_errors():
            mark_cancelled(self.engine, job_id, facts_of(run) if run else None)

    def _cancel_kept(self, job_id: UUID | str, owner: UUID | None) -> Job:
        """Cancel a job whose run was deleted."""
        job = self.get(job_id, owner)
        if job.status.is_terminal:
            raise self._conflict(job)
        self._mark_cancelled(job.id)
        return self.get(job_id)

    def _cancel_started(self, run: FlowRun) -> Job:
        """Propose Cancelling, which Prefect turns into Cancelled for a waiting run without a process.

        Cancelled instead would not stop a run that a worker has just picked up.
        """
        if run.state and run.state.type is StateType.SCHEDULED and run.infrastructure_pid:
            self._runs.forget_process(run.id)  # of an earlier attempt, which would keep it in Cancelling
        is_crashed = run.state is not None and run.state.type is StateType.CRASHED
        if run.state and run.state.type is not StateType.CANCELLING:
            self._runs.propose(run.id, Cancelled() if is_crashed else Cancelling())
        return self._reader.describe(self._runs.get(run.id))


def _is_created(run: FlowRun) -> bool:
    return run.state is not None and run.state.type is StateType.PAUSED and run.state.name == StateName.CREATED
