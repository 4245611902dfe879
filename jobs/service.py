"""`JobService`: submit, follow, list and cancel jobs. The one place that talks to Prefect's API."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Paused, Scheduled
from prefect.types._datetime import DateTime, now
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.job import Job, job_from_run
from jobs.progress import read_reports
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import CREATED_STATE_NAME, JobStatus, status_of
from jobs.store import SavedConfig, engine_for
from jobs.webhook import build_payload, deliver
from sft.errors import ConfigNotFound, JobConflict, JobNotFound, StackError, TrainingBusy

Strategy = Literal["queue", "reject"]
T = TypeVar("T")

FLOW_NAME = "finetune"
DEPLOYMENT_NAME = "finetune/sft"
SUBMIT_LOCK = 7_415_002  # PostgreSQL advisory lock: submissions take their places one after the other
PAGE_SIZE = 200  # Prefect's cap
SLOTS_TTL_SECONDS = 5.0
BUSY_MESSAGE = "A training job is already running. Please try again later."

_OCCUPYING = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class Queue(NamedTuple):
    """The line of jobs: whether any is being trained, and the ids of those that wait, next one first."""

    is_training_running: bool
    waiting: list[UUID]


class JobService:
    """Jobs of one Prefect server. Thread-safe; one a process is enough.

    Every method raises StackError when Prefect or the database can't be reached.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.prefect_api_url is None or settings.database_url is None:
            raise StackError("prefect_api_url and database_url must be set; call jobs.stack.ensure_up first")
        self.settings = settings
        self.engine = engine_for(settings.database_url)
        self._client = SyncPrefectClient(settings.prefect_api_url)
        self._deployment_id: UUID | None = None
        self._slots: tuple[float, int] | None = None
        self._slots_lock = threading.Lock()

    # -- making and ending jobs

    def submit(self, spec: JobSpec, strategy: Strategy = "queue") -> Job:
        """Make a job and put it in line.

        Raises:
            TrainingBusy: with `strategy="reject"`, when a job is running or in line.
        """
        with self._submit_lock():
            if strategy == "reject" and self._count(_OCCUPYING) + self._count([StateType.SCHEDULED]) > 0:
                raise TrainingBusy(BUSY_MESSAGE)
            run = self._create_run(spec, Scheduled())
            return self._describe(run)

    def create(self, spec: JobSpec) -> Job:
        """Make a job that waits until `start` is called."""
        return self._describe(self._create_run(spec, Paused(name=CREATED_STATE_NAME, timeout_seconds=None)))

    def start(self, job_id: UUID | str) -> Job:
        """Put a created job in line; a job that has been started before is left as it is."""
        with self._submit_lock():
            run = self._read_run(job_id)
            if run.state and run.state.type is StateType.PAUSED and run.state.name == CREATED_STATE_NAME:
                self._propose(run.id, Scheduled(scheduled_time=now("UTC")), force=True)
                run = self._read_run(job_id)
            return self._describe(run)

    def cancel(self, job_id: UUID | str) -> Job:
        """End a job: a waiting one at once, a running one as soon as its process is gone.

        Raises:
            JobConflict: when the job has already ended.
        """
        run = self._read_run(job_id)
        if run.state is None or run.state.is_final():
            raise JobConflict(f"Job {run.id} has already ended")
        if run.state.type is StateType.CANCELLING:
            return self._describe(run)
        # A waiting run has no process to wait for; one that was rescheduled keeps a dead process's id.
        waiting = run.state.type in (StateType.SCHEDULED, StateType.PAUSED)
        target: State[Any] = Cancelled() if waiting else Cancelling()
        result = self._propose(run.id, target)
        if result.status is not SetStateStatus.ACCEPT:
            return self.cancel(job_id)  # it moved on meanwhile; look again
        if waiting:
            self._call_webhook(run)
        return self._describe(self._read_run(job_id))

    # -- looking at jobs

    def get(self, job_id: UUID | str) -> Job:
        """One job. Raises JobNotFound for an unknown id, one that is no UUID included."""
        return self._describe(self._read_run(job_id))

    def list_jobs(self) -> list[Job]:
        """Every job, newest first."""
        runs = self._read_runs(filters.FlowRunFilter(), FlowRunSort.EXPECTED_START_TIME_DESC)
        waiting = self._line_up([run for run in runs if _is_in_line(run)])
        free = self._free_slots() if waiting else 0
        places = {run.id: place for place, run in enumerate(waiting, start=1 - free)}
        reports = self._call(lambda: read_reports(self.engine, [run.id for run in runs]))
        return [self._to_job(run, places.get(run.id), reports.get(run.id)) for run in runs]

    def queue(self) -> Queue:
        """The line as it is now."""
        due = filters.FlowRunFilter(state=_state_filter([StateType.SCHEDULED]))
        waiting = self._line_up([run for run in self._read_runs(due) if _is_in_line(run)])
        occupied = self._count(_OCCUPYING)
        starting = min(len(waiting), max(0, self._slot_count() - occupied))
        return Queue(occupied + starting > 0, [run.id for run in waiting[starting:]])

    # -- saved configurations

    def save_config(self, name: str, config: dict[str, Any]) -> SavedConfig:
        """Keep a configuration, whole or partial, under a new id."""
        saved = SavedConfig(name=name, config=config)
        with self._session() as session:
            session.add(saved)
            session.commit()
        return saved

    def get_config(self, config_id: UUID | str) -> SavedConfig:
        """One saved configuration. Raises ConfigNotFound."""
        with self._session() as session:
            saved = session.get(SavedConfig, _parse_id(config_id)) if _parse_id(config_id) else None
        if saved is None:
            raise ConfigNotFound(f"Config {config_id} not found")
        return saved

    def list_configs(self) -> list[SavedConfig]:
        """Every saved configuration, oldest first."""
        with self._session() as session:
            return [*session.scalars(select(SavedConfig).order_by(SavedConfig.created_at, SavedConfig.config_id))]

    # -- Prefect

    def _create_run(self, spec: JobSpec, state: State[Any]) -> FlowRun:
        if self._deployment_id is None:
            deployment = self._call(lambda: self._client.read_deployment_by_name(DEPLOYMENT_NAME))
            self._deployment_id = deployment.id
        deployment_id = self._deployment_id
        parameters = spec.to_parameters()
        return self._call(
            lambda: self._client.create_flow_run_from_deployment(deployment_id, parameters=parameters, state=state)
        )

    def _read_run(self, job_id: UUID | str) -> FlowRun:
        parsed = _parse_id(job_id)
        if parsed is None:
            raise JobNotFound(f"Job {job_id} not found")
        found = self._read_runs(filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[parsed])))
        if not found:
            raise JobNotFound(f"Job {job_id} not found")
        return found[0]

    def _read_runs(
        self, run_filter: filters.FlowRunFilter, sort: FlowRunSort = FlowRunSort.EXPECTED_START_TIME_ASC
    ) -> list[FlowRun]:
        runs: list[FlowRun] = []
        while True:
            request = functools.partial(
                self._client.read_flow_runs,
                flow_filter=_FLOW,
                flow_run_filter=run_filter,
                sort=sort,
                limit=PAGE_SIZE,
                offset=len(runs),
            )
            page = self._call(request)
            runs += page
            if len(page) < PAGE_SIZE:
                return runs

    def _count(self, types: list[StateType], before: DateTime | None = None) -> int:
        """How many jobs are in these states and due, optionally only those in line before a time."""
        due = filters.FlowRunFilterExpectedStartTime(before_=before or now("UTC"))
        run_filter = filters.FlowRunFilter(state=_state_filter(types), expected_start_time=due)
        return self._call(lambda: self._client.count_flow_runs(flow_filter=_FLOW, flow_run_filter=run_filter))

    def _propose(self, run_id: UUID, state: State[Any], force: bool = False) -> OrchestrationResult[Any]:
        return self._call(lambda: self._client.set_flow_run_state(run_id, state, force=force))

    @staticmethod
    def _call_webhook(run: FlowRun) -> None:
        """Tell of a job that was cancelled before it had a process which could."""
        if url := run.parameters.get("webhook_url"):
            payload = build_payload(run.id, JobStatus.CANCELLED.value, None)
            threading.Thread(target=deliver, args=(url, payload), name="webhook", daemon=True).start()

    def _slot_count(self) -> int:
        """How many jobs can run at once: the pool's limit, else its online workers, at least 1."""
        with self._slots_lock:
            if self._slots is None or time.monotonic() - self._slots[0] > SLOTS_TTL_SECONDS:
                pool = self._call(lambda: self._client.read_work_pool(self.settings.work_pool))
                self._slots = (time.monotonic(), pool.concurrency_limit or 1)
            return self._slots[1]

    def _free_slots(self) -> int:
        return max(0, self._slot_count() - self._count(_OCCUPYING))

    # -- describing

    def _describe(self, run: FlowRun) -> Job:
        place = None
        if _is_in_line(run):
            ahead = self._count([StateType.SCHEDULED], before=run.expected_start_time)
            place = max(ahead, 1) - self._free_slots()  # the count includes the run itself
        report = self._call(lambda: read_reports(self.engine, [run.id])).get(run.id)
        return self._to_job(run, place, report)

    def _to_job(self, run: FlowRun, place: int | None, report: Any) -> Job:
        """`place` counts from 1 behind the free slots: 0 or less means that a slot is free for this run."""
        state = run.state
        has_free_slot = place is not None and place <= 0
        status = status_of(state.type.value, state.name or "", has_free_slot) if state else JobStatus.CREATED
        position = place if status is JobStatus.QUEUED and place is not None and place > 0 else None
        return job_from_run(run, status, position, report)

    @staticmethod
    def _line_up(runs: list[FlowRun]) -> list[FlowRun]:
        return sorted(runs, key=lambda run: (run.expected_start_time or now("UTC"), run.id))

    # -- plumbing

    @contextmanager
    def _submit_lock(self) -> Iterator[None]:
        with self._session() as session:
            self._call(lambda: session.execute(select(func.pg_advisory_xact_lock(SUBMIT_LOCK))))
            yield

    def _session(self) -> Session:
        return Session(self.engine, expire_on_commit=False)

    @staticmethod
    def _call(request: Callable[[], T]) -> T:
        """Run a request, turning what a client can't act on into a StackError."""
        try:
            return request()
        except ObjectNotFound as error:
            raise StackError("Prefect does not know the deployment or work pool; run `tuneyard up`") from error
        except httpx.HTTPError as error:
            raise StackError(
                f"Prefect's API can't be reached ({type(error).__name__}); see `tuneyard status`"
            ) from error


_FLOW = filters.FlowFilter(name=filters.FlowFilterName(any_=[FLOW_NAME]))


def _state_filter(types: list[StateType]) -> filters.FlowRunFilterState:
    return filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=types))


def _is_in_line(run: FlowRun) -> bool:
    """Whether the run waits for a slot now; one that a schedule has set for later does not."""
    if run.state is None or run.state.type is not StateType.SCHEDULED:
        return False
    return run.expected_start_time is None or run.expected_start_time <= now("UTC")


def _parse_id(value: UUID | str) -> UUID | None:
    try:
        return value if isinstance(value, UUID) else UUID(str(value))
    except ValueError:
        return None
