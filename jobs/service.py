"""`JobService`: submit, follow, list and cancel jobs."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import UUID

from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Cancelling, Paused, Scheduled
from prefect.types._datetime import now
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from jobs.attempts import count_attempts, mark_cancelled
from jobs.configs import ConfigStore
from jobs.database import translate_errors
from jobs.idempotency import RequestKey, find_claim, keep_answer, make_claim
from jobs.job import Job, job_from_run
from jobs.listing import Cursor, JobFilters, Listing
from jobs.log_lines import escape
from jobs.outbox import add_delivery
from jobs.prefect_runs import PrefectRuns, open_prefect_client
from jobs.preflight import NO_DOUBTS, Doubts, Preflight, SubmissionWarning
from jobs.progress import read_reports
from jobs.queue import Line, Priority, Queue
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import CREATED_STATE_NAME, JobStatus, status_of
from jobs.store import engine_for
from jobs.targets import check_target
from jobs.webhook import build_payload
from sft.errors import JobConflict, StackError, TrainingBusy

logger = logging.getLogger(__name__)

Strategy = Literal["queue", "reject"]

SUBMIT_LOCK = 7_415_002  # PostgreSQL advisory lock: submissions take their places one after the other
BUSY_MESSAGE = "A training job is already running. Please try again later."


@dataclass(frozen=True)
class Submission:
    """A job that was put in line, as it stood then; `queue_position` is set while others are ahead."""

    id: UUID
    status: JobStatus
    queue_position: int | None
    warnings: tuple[SubmissionWarning, ...] = ()


class JobPage(NamedTuple):
    """One page of a list, and the cursor of the next one."""

    jobs: list[Job]
    next_cursor: str | None


class JobService:
    """Jobs of one Prefect server. Thread-safe; one a process is enough.

    Every method raises StackError when Prefect or the database can't be reached.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.prefect_api_url is None or settings.database_url is None:
            raise StackError("prefect_api_url and database_url must be set; call jobs.stack.ensure_up first")
        self.settings = settings
        self.engine = engine_for(settings.database_url)
        self._opened = ExitStack()
        self.client = self._opened.enter_context(open_prefect_client(settings))
        self.configs = ConfigStore(self.engine)
        self._runs = PrefectRuns(self.client, settings.work_pool)
        self.preflight = Preflight(settings)
        self._line = Line(self._runs)
        self._listing = Listing(self._runs, self._line)
        self._submitting = threading.Lock()

    def close(self) -> None:
        """Close the connections to Prefect; the service can't be used any more."""
        self._opened.close()

    # -- making and ending jobs

    def submit(
        self,
        spec: JobSpec,
        strategy: Strategy = "queue",
        priority: Priority = "normal",
        request: RequestKey | None = None,
        doubts: Doubts = NO_DOUBTS,
    ) -> Submission:
        """Make a job and put it in line. A `request` that came before gets its first answer again and makes no job.

        Args:
            doubts: What the preflight found; kept with the answer, or raised in its place.

        Raises:
            TuneyardError: `doubts.refusal`, if there is one.
            TrainingBusy: with `strategy="reject"`, when a job is running or in line.
            IdempotencyKeyReused: the request's key came before with another body.
            InvalidConfig: the webhook leads to an address that is neither public nor allowed.
        """
        self._check_webhook(spec)
        if request is None and doubts.refusal is not None:
            raise doubts.refusal
        with self._submit_lock() as connection:
            if request is None:
                run = self._create_in_line(spec, strategy, priority, None)
            else:
                return self._submit_once(connection, request, spec, strategy, priority, doubts)
        return self._look_at(run, doubts.warnings)  # without the lock: nobody who comes later can get ahead

    def create(self, spec: JobSpec, priority: Priority = "normal") -> Job:
        """Make a job that waits until `start` is called. Raises InvalidConfig as `submit` does."""
        self._check_webhook(spec)
        return self._describe(self._create(spec, Paused(name=CREATED_STATE_NAME, timeout_seconds=None), priority))

    def start(self, job_id: UUID | str) -> Job:
        """Put a created job in line; a job that has been started before is left as it is."""
        with self._submit_lock():
            run = self._runs.get(job_id)
            if _is_created(run):
                self._runs.propose(run.id, Scheduled(scheduled_time=now("UTC")), force=True)
                run = self._runs.get(job_id)
        return self._describe(run)

    def cancel(self, job_id: UUID | str) -> Job:
        """End a job: a waiting one at once, a running one as soon as its process is gone.

        Raises:
            JobConflict: when the job has already ended.
        """
        run = self._runs.get(job_id)
        self._check_not_ended(run)
        if run.state and run.state.type is StateType.PAUSED:
            with self._submit_lock():  # against a `start` at the same time
                run = self._runs.get(job_id)
                if run.state and run.state.type is StateType.PAUSED:
                    self._runs.propose(run.id, Cancelled())
                    self._call_webhook(run)
                    return self._describe(self._runs.get(job_id))
        with translate_errors():
            mark_cancelled(self.engine, run.id)  # from here on the watchdog does not begin it again
        run = self._runs.get(job_id)
        self._check_not_ended(run)
        return self._cancel_started(run)

    def stop(self, job_id: UUID | str) -> Job:
        """`cancel`, content with a job that was cancelled before."""
        try:
            return self.cancel(job_id)
        except JobConflict:
            job = self.get(job_id)
            if job.status is JobStatus.CANCELLED:
                return job
            raise

    # -- looking at jobs

    def get(self, job_id: UUID | str) -> Job:
        """One job. Raises JobNotFound for an unknown id, one that is no UUID included."""
        return self._describe(self._runs.get(job_id))

    def list_jobs(
        self, wanted: JobFilters | None = None, limit: int | None = None, cursor: str | None = None
    ) -> JobPage:
        """Jobs, newest first: all of them, or the first `limit` behind the cursor of the page before.

        Raises:
            InvalidConfig: the cursor is none of ours.
        """
        start = Cursor.decode(cursor) if cursor is not None else None
        runs, following = self._listing.page(wanted or JobFilters(), start, limit)
        return JobPage(self._describe_all(runs), following.encode() if following else None)

    def queue(self) -> Queue:
        """The line as it is now."""
        return self._line.read()

    # -- inside

    def _create(self, spec: JobSpec, state: State[Any], priority: Priority, run_key: str | None = None) -> FlowRun:
        return self._runs.create(
            parameters=spec.to_parameters(),
            state=state,
            tags=spec.tags(),
            name=spec.config.run_name and escape(spec.config.run_name),  # workers write it into their logs
            work_queue_name=self._line.queue_name(priority),
            idempotency_key=run_key,
        )

    def _check_webhook(self, spec: JobSpec) -> None:
        if spec.webhook_url:
            check_target(spec.webhook_url, self.settings.webhook_allow)

    def _create_in_line(self, spec: JobSpec, strategy: Strategy, priority: Priority, run_key: str | None) -> FlowRun:
        if strategy == "reject" and self._line.is_busy():
            raise TrainingBusy(BUSY_MESSAGE)
        return self._create(spec, Scheduled(), priority, run_key)

    def _submit_once(
        self,
        connection: Connection,
        request: RequestKey,
        spec: JobSpec,
        strategy: Strategy,
        priority: Priority,
        doubts: Doubts,
    ) -> Submission:
        claim = find_claim(connection, request)
        if claim is not None and claim.answer is not None:
            return _read_answer(claim.answer)
        run = self._find_by_key(claim.run_key) if claim else None
        if run is None:
            if doubts.refusal is not None:
                raise doubts.refusal
            if strategy == "reject" and self._line.is_busy():
                raise TrainingBusy(BUSY_MESSAGE)
            claim = claim or make_claim(connection, request)
            run = self._create(spec, Scheduled(), priority, claim.run_key)
        submission = self._look_at(run, doubts.warnings)
        assert claim is not None  # noqa: S101 - for the type checker
        keep_answer(connection, request, claim, _to_answer(submission))
        return submission

    def _find_by_key(self, run_key: str) -> FlowRun | None:
        by_key = filters.FlowRunFilter(idempotency_key=filters.FlowRunFilterIdempotencyKey(any_=[run_key]))
        return next(iter(self._runs.page(by_key, limit=1)), None)

    def _check_not_ended(self, run: FlowRun) -> None:
        job = self._describe(run)
        if job.status.is_terminal and run.state and run.state.is_final():
            how = f"is already {job.status}" if job.status is JobStatus.CANCELLED else f"has already {job.status}"
            raise JobConflict(f"Job {run.id} {how}; only a job that has not ended can be cancelled")

    def _cancel_started(self, run: FlowRun) -> Job:
        """Ask for Cancelling, which Prefect itself turns into Cancelled for a run that waits and has no process.

        Asking for Cancelled would let a run that a worker has just taken start all the same.
        """
        if run.state and run.state.type is StateType.SCHEDULED and run.infrastructure_pid:
            self._runs.forget_process(run.id)  # of an earlier attempt; else it would stay Cancelling
        is_crashed = run.state is not None and run.state.type is StateType.CRASHED
        if run.state and run.state.type is not StateType.CANCELLING:
            self._runs.propose(run.id, Cancelled() if is_crashed else Cancelling())
        ended = self._runs.get(run.id)
        had_no_process = is_crashed or (run.state is not None and run.state.type is StateType.SCHEDULED)
        if had_no_process and ended.state and ended.state.type is StateType.CANCELLED:
            self._call_webhook(ended)
        return self._describe(ended)

    def _call_webhook(self, run: FlowRun) -> None:
        """Have a job told of that was cancelled before it had a process which could."""
        if url := run.parameters.get("webhook_url"):
            try:
                add_delivery(self.engine, run.id, url, build_payload(run.id, "cancelled", None))
            except SQLAlchemyError as error:
                logger.warning("The webhook of job %s is left to the watchdog (%s)", run.id, type(error).__name__)

    def _look_at(self, run: FlowRun, warnings: Sequence[SubmissionWarning]) -> Submission:
        place = self._line.places([run]).get(run.id)
        status, position = _read_state(run, place)
        return Submission(run.id, status, position, tuple(warnings))

    def _describe(self, run: FlowRun) -> Job:
        return self._describe_all([run])[0]

    def _describe_all(self, runs: list[FlowRun]) -> list[Job]:
        places = self._line.places(runs)
        ids = [run.id for run in runs]
        with translate_errors():
            reports, attempts = read_reports(self.engine, ids), count_attempts(self.engine, ids)
        return [
            job_from_run(run, *_read_state(run, places.get(run.id)), reports.get(run.id), attempts.get(run.id))
            for run in runs
        ]

    @contextmanager
    def _submit_lock(self) -> Iterator[Connection]:
        """One submission at a time, over all processes. The connection commits every statement by itself.

        A process waits with one connection only: the others would be lacking to the one that is at work.
        """
        with self._submitting, translate_errors(), self.engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(select(func.pg_advisory_lock(SUBMIT_LOCK)))
            try:
                yield connection
            finally:
                try:
                    connection.execute(select(func.pg_advisory_unlock(SUBMIT_LOCK)))
                except SQLAlchemyError:
                    connection.invalidate()  # a lock must not go back into the pool
                    raise


def _is_created(run: FlowRun) -> bool:
    return run.state is not None and run.state.type is StateType.PAUSED and run.state.name == CREATED_STATE_NAME


def _read_state(run: FlowRun, place: int | None) -> tuple[JobStatus, int | None]:
    """Status and queue position of a run at this place of the line: 0 or less means that a slot is free for it."""
    has_free_slot = place is not None and place <= 0
    state = run.state
    status = status_of(state.type.value, state.name or "", has_free_slot) if state else JobStatus.CREATED
    return status, place if status is JobStatus.QUEUED and place is not None else None


def _to_answer(submission: Submission) -> dict[str, Any]:
    return {
        "id": str(submission.id),
        "status": submission.status.value,
        "queue_position": submission.queue_position,
        "warnings": [*submission.warnings],
    }


def _read_answer(answer: dict[str, Any]) -> Submission:
    warnings = tuple(answer.get("warnings", ()))
    return Submission(UUID(answer["id"]), JobStatus(answer["status"]), answer["queue_position"], warnings)
