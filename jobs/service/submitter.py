"""`Submitter`: creates jobs from submissions, in order of arrival, several in one request to Prefect.

Prefect creates several runs in one request in half the time of single requests, and counts queue positions as fast for
many as for one. So submissions that arrive during one turn are handled together in the next.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.schemas import filters
from prefect.client.schemas.actions import DeploymentFlowRunCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Scheduled
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from jobs.clients.idempotency import Claim, RequestKey, find_claim, keep_answer, make_claim
from jobs.daemon_threads import DaemonThreads
from jobs.engine.job_queue import JobQueue
from jobs.engine.runs import PrefectRuns, new_run
from jobs.errors import TrainingBusy
from jobs.lifecycle.ends import RUN_FACTS, keep_run
from jobs.preflight import SubmissionCheck
from jobs.service.job_reader import read_state
from jobs.service.submission import Submission, SubmissionLock
from jobs.service.turns import Ticket, Turns
from jobs.spec import JobSpec, owner_tag
from jobs.storage.claims import is_denied
from jobs.storage.connections import autocommit
from sft.errors import StackError, TuneyardError
from tuneyard_wire.fields import Priority, Strategy
from tuneyard_wire.one_line import escape

logger = logging.getLogger(__name__)

_threads = DaemonThreads("keep-run")
BUSY_MESSAGE = "A training job is already running. Please try again later."
AT_ONCE = 20  # submissions in one turn; their checks fit into `Preflight`, three groups each


@dataclass(frozen=True)
class Wanted:
    """A submission: the arguments of `JobService.submit`."""

    spec: JobSpec
    strategy: Strategy
    priority: Priority
    request: RequestKey | None
    check: SubmissionCheck
    client: str
    owner: UUID | None


Finish = Callable[[], Submission]  # what is left to do after the turn, on the thread that submits
Job = Ticket[Wanted, Finish]


@dataclass
class Draft:
    """A job that is being created; `claim` is that of its idempotency key."""

    job: Job
    claim: Claim | None = None
    run: FlowRun | None = None


class Submitter:
    """Creates jobs from submissions. Thread-safe. Raises StackError if Prefect or the database can't be reached."""

    def __init__(self, engine: Engine, runs: PrefectRuns, queue: JobQueue, lock: SubmissionLock) -> None:
        self._engine = engine
        self._runs = runs
        self._queue = queue
        self._lock = lock
        self._turns: Turns[Wanted, Finish] = Turns(self._work, count_together)

    def submit(self, wanted: Wanted) -> Submission:
        """Create a job and queue it."""
        return self._turns.take(wanted)()

    def create(self, spec: JobSpec, state: State[Any], priority: Priority, owner: UUID | None = None) -> FlowRun:
        """Create the run of a job."""
        return self._runs.create(self._describe_run(spec, state, priority, owner))

    def keep(self, run: FlowRun, client: str = "", connection: Connection | None = None) -> None:
        """Store the facts of a new run, with this connection or a new one; the watchdog does it if this fails."""
        try:
            with nullcontext(connection) if connection is not None else autocommit(self._engine) as own:
                keep_run(own, run.id, facts_of(run), client=client)
        except SQLAlchemyError as error:
            level = logging.DEBUG if is_denied(error) else logging.WARNING  # a trainer may not
            logger.log(level, "Could not store the run of job %s (%s); the watchdog will", run.id, type(error).__name__)

    def _describe_run(
        self, spec: JobSpec, state: State[Any], priority: Priority, owner: UUID | None, run_key: str | None = None
    ) -> DeploymentFlowRunCreate:
        return new_run(
            parameters=spec.to_parameters(),
            state=state,
            tags=[*spec.tags(), *([owner_tag(owner)] if owner else [])],
            name=spec.config.run_name and escape(spec.config.run_name),  # workers write it to their logs
            work_queue_name=self._queue.queue_name(priority),
            idempotency_key=run_key,
        )

    # -- a turn

    def _work(self, batch: list[Job]) -> None:
        """Create the jobs of one turn. An error in a draft's own request fails that job only, any other error all."""
        with self._lock.taken() as connection:
            if len(batch) == 1 and batch[0].wanted.request is None:
                wanted = batch[0].wanted
                self._check_free(wanted.strategy)
                wanted.check.begin()  # the checks run while this thread waits for Prefect
                run = self.create(wanted.spec, Scheduled(), wanted.priority, wanted.owner)
                batch[0].result = partial(self._finish, run, wanted)
                return
            drafts = [draft for job in batch if (draft := self._begin(job, connection))]
            self._create([draft for draft in drafts if draft.run is None], connection)
            self._answer([draft for draft in drafts if draft.run is not None], connection)

    def _finish(self, run: FlowRun, wanted: Wanted) -> Submission:
        """Store and describe a job after the lock is released: later submissions can't get ahead of it."""
        keep = partial(copy_context().run, self.keep, run, wanted.client)  # with this call's time limit
        try:
            finish = _threads.start(keep).result
        except RuntimeError:  # no more threads
            finish = keep
        places = self._queue.places([run])
        submission = describe(run, places, wanted)
        finish()
        return submission

    def _begin(self, job: Job, connection: Connection) -> Draft | None:
        """Look for an earlier request with the same idempotency key; None if it has a response or is refused."""
        wanted = job.wanted
        if wanted.request is None:
            return Draft(job)
        try:
            claim = find_claim(connection, wanted.request)
            if claim is not None and claim.answer is not None:
                job.result = partial(Submission.from_json, claim.answer)
                return None
            run = self._find_by_key(claim.run_key) if claim else None
            if run is None:
                if refusal := wanted.check.refusal:
                    raise refusal
                self._check_free(wanted.strategy)
        except TuneyardError as error:
            job.error = error
            return None
        return Draft(job, claim or make_claim(connection, wanted.request), run)

    def _create(self, drafts: list[Draft], connection: Connection) -> None:
        """Create the runs of these jobs, scheduled in this order."""
        wanted_runs = []
        for draft in drafts:
            wanted = draft.job.wanted
            wanted.check.begin()
            run_key = draft.claim.run_key if draft.claim else None
            wanted_runs.append(self._describe_run(wanted.spec, Scheduled(), wanted.priority, wanted.owner, run_key))
        for draft, made in zip(drafts, self._runs.create_many(wanted_runs), strict=True):
            if isinstance(made, StackError):
                draft.job.error = made
            else:
                draft.run = made
                self.keep(made, draft.job.wanted.client, connection)

    def _answer(self, drafts: list[Draft], connection: Connection) -> None:
        places = self._queue.places([draft.run for draft in drafts if draft.run])
        for draft in drafts:
            wanted = draft.job.wanted
            assert draft.run is not None  # noqa: S101 - for the type checker
            submission = describe(draft.run, places, wanted)
            if draft.claim is not None and wanted.request is not None:
                keep_answer(connection, wanted.request, draft.claim, submission.to_json())
            draft.job.result = partial(copy, submission)

    def _find_by_key(self, run_key: str) -> FlowRun | None:
        by_key = filters.FlowRunFilter(idempotency_key=filters.FlowRunFilterIdempotencyKey(any_=[run_key]))
        return next(iter(self._runs.page(by_key, limit=1)), None)

    def _check_free(self, strategy: Strategy) -> None:
        if strategy == "reject" and self._queue.is_busy():
            raise TrainingBusy(BUSY_MESSAGE)


def count_together(waiting: Sequence[Wanted]) -> int:
    """How many of the first submissions can be handled in one turn.

    One with `strategy=reject` gets a separate turn, as does a repeated request whose first response is not known yet.
    """
    keys = set[tuple[str, str]]()
    for index, wanted in enumerate(waiting[:AT_ONCE]):
        key = (wanted.request.scope, wanted.request.key) if wanted.request else None
        if wanted.strategy == "reject" or key in keys:
            return max(index, 1)
        keys |= {key} if key else set()
    return min(len(waiting), AT_ONCE)


def describe(run: FlowRun, places: Mapping[UUID, int], wanted: Wanted) -> Submission:
    """The result of a submission."""
    status, position = read_state(run, places.get(run.id))
    return Submission(run.id, status, position, wanted.check.warnings)


def facts_of(run: FlowRun) -> dict[str, Any]:
    """The facts that are stored about a job's run."""
    return run.model_dump(mode="json", include={*RUN_FACTS})
