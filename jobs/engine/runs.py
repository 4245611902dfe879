"""`PrefectRuns`: the runs of the `finetune` flow and their work pool, over Prefect's client."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters
from prefect.client.schemas.actions import DeploymentFlowRunCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import to_state_create
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import Engine

from jobs.engine.pool import PoolReader
from jobs.engine.prefect_client import call, means_missing
from jobs.errors import JobNotFound
from jobs.spec import owner_tag
from jobs.storage.connections import translate_errors
from jobs.storage.run_ids import RunIds
from jobs.vocabulary import DEPLOYMENT_NAME, FLOW_NAME, PAGE_SIZE
from sft.errors import StackError

if TYPE_CHECKING:
    from prefect.client.orchestration.routes import ServerRoutes

T = TypeVar("T")

_FLOW = filters.FlowFilter(name=filters.FlowFilterName(any_=[FLOW_NAME]))


class WaitingRun(BaseModel, frozen=True):
    """What determines the order of the queue: a run's id, its work queue and the time since which it waits."""

    id: UUID
    work_queue_name: str | None
    next_scheduled_start_time: datetime | None


_WAITING_RUNS = TypeAdapter(list[WaitingRun])


class PrefectRuns:
    """The runs of jobs. Thread-safe. Every method raises StackError if Prefect or the database fails.

    A run's id is replaced by its job's id, also for a run that was re-created after its job's run was lost.
    """

    def __init__(self, client: SyncPrefectClient, work_pool: str, engine: Engine) -> None:
        self.client = client
        self.pool = PoolReader(client, work_pool)
        self._engine = engine
        self._deployment: DeploymentResponse | None = None
        self._flow_id: UUID | None = None

    def create(self, wanted: DeploymentFlowRunCreate) -> FlowRun:
        """Create a run of the deployment, described by `new_run`."""
        path: ServerRoutes = "/deployments/{id}/create_flow_run"
        return FlowRun.model_validate(self._post_to_deployment(path, _to_body(wanted)))

    def create_many(self, wanted: Sequence[DeploymentFlowRunCreate]) -> list[FlowRun | StackError]:
        """Create at most 100 runs in one request, in this order; an error takes the place of one that is refused.

        In separate requests each would take Prefect twice as long.
        """
        if len(wanted) < 2:
            return [self.create(one) for one in wanted]
        path: Any = "/deployments/{id}/create_flow_run/bulk"
        try:
            response = self._post_to_deployment(path, [_to_body(one) for one in wanted])
        except StackError as error:
            if not _means_unsupported(error):
                raise
            return [self.create(one) for one in wanted]  # a server of an earlier release
        ids = [UUID(one["flow_run_id"]) if one["flow_run_id"] else None for one in response["results"]]
        made = filters.FlowRunFilterId(any_=[run_id for run_id in ids if run_id])
        found = {run.id: run for run in self.page(filters.FlowRunFilter(id=made))} if made.any_ else {}
        return [self._find_made(found, run_id, one) for run_id, one in zip(ids, wanted, strict=True)]

    def _find_made(
        self, found: Mapping[UUID, FlowRun], run_id: UUID | None, wanted: DeploymentFlowRunCreate
    ) -> FlowRun | StackError:
        """Read one of the created runs; a missing one is created alone, which raises the reason."""
        try:
            return (found.get(run_id) or self.get(run_id)) if run_id else self.create(wanted)
        except StackError as error:
            return error

    def _post_to_deployment(self, path: "ServerRoutes", body: Any) -> Any:
        def post(deployment: DeploymentResponse) -> Any:
            return call(lambda: self.client.request("POST", path, path_params={"id": deployment.id}, json=body)).json()

        was_known = self._deployment is not None
        try:
            return post(self._read_deployment())
        except StackError as error:
            if not was_known or not means_missing(error):
                raise
        return post(self._read_deployment(again=True))

    def _read_deployment(self, again: bool = False) -> DeploymentResponse:
        """The deployment, read once; `again` if it may have been re-created under other ids."""
        if self._deployment is None or again:
            self._deployment = call(lambda: self.client.read_deployment_by_name(DEPLOYMENT_NAME))
        return self._deployment

    def _read_flow_id(self, again: bool = False) -> UUID | None:
        """The flow's id, read once; `again` if it may have been re-created. None if it was deleted."""
        if self._flow_id is None or again:
            try:
                self._flow_id = call(lambda: self.client.read_flow_by_name(FLOW_NAME)).id
            except StackError as error:
                if not means_missing(error):
                    raise
        return self._flow_id

    def get(self, job_id: UUID | str, ids: RunIds | None = None, owner: UUID | None = None) -> FlowRun:
        """One run. Raises JobNotFound for an unknown id or one that is not a UUID.

        Args:
            owner: Prefect is asked only for a run of this id and owner, so that another owner's run is as unknown as
                one that does not exist, and takes as long.
        """
        unknown = JobNotFound(f"Job {job_id} not found")
        try:
            parsed = job_id if isinstance(job_id, UUID) else UUID(job_id)
        except ValueError as error:
            raise unknown from error
        known = ids or self.read_ids()
        if owner is not None:
            wanted = filters.FlowRunFilter.model_validate(
                {"id": {"any_": [parsed]}, "tags": {"all_": [owner_tag(owner)]}}
            )
            if found := self.page(wanted, limit=1, ids=known):
                return found[0]
            raise unknown
        try:
            run = _name_jobs([call(lambda: self.client.read_flow_run(known.run_of(parsed)))], known)[0]
        except StackError as error:
            raise unknown if means_missing(error) else error from error.__cause__
        flow_ids = (self._read_flow_id(again) for again in (False, True))
        if run.flow_id not in flow_ids:  # read again only if needed
            raise unknown
        return run

    def page(
        self,
        run_filter: filters.FlowRunFilter,
        sort: FlowRunSort = FlowRunSort.EXPECTED_START_TIME_DESC,
        limit: int = PAGE_SIZE,
        queues: list[str] | None = None,
        offset: int = 0,
        ids: RunIds | None = None,
    ) -> list[FlowRun]:
        """At most 200 runs from `offset` on that match the filter, in these work queues if given."""
        ids = ids or self.read_ids()
        found = call(
            lambda: self.client.read_flow_runs(
                flow_filter=_FLOW,
                flow_run_filter=_name_runs(run_filter, ids),
                work_queue_filter=_queue_filter(queues),
                sort=sort,
                limit=min(limit, PAGE_SIZE),
                offset=offset,
            )
        )
        return _name_jobs(found, ids)

    def first_waiting(
        self,
        run_filter: filters.FlowRunFilter,
        limit: int = PAGE_SIZE,
        queues: list[str] | None = None,
        ids: RunIds | None = None,
    ) -> list[WaitingRun]:
        """The runs that match the filter and have waited longest; at most 200."""
        ids = ids or self.read_ids()
        wanted_queues = _queue_filter(queues)
        body = {
            "flows": _FLOW.model_dump(mode="json"),
            "flow_runs": _name_runs(run_filter, ids).model_dump(mode="json", exclude_unset=True),
            "work_pool_queues": wanted_queues.model_dump(mode="json") if wanted_queues else None,
            "sort": FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
            "limit": min(limit, PAGE_SIZE),
        }
        found = _WAITING_RUNS.validate_json(
            call(lambda: self.client.request("POST", "/flow_runs/filter", json=body)).content
        )
        return [run.model_copy(update={"id": ids.job_of(run.id)}) for run in found]

    def read_ids(self) -> RunIds:
        """Read the current mapping of runs to jobs, and the jobs that have just ended."""
        with translate_errors():
            return RunIds(self._engine)

    def count(self, run_filter: filters.FlowRunFilter, queues: list[str] | None = None) -> int:
        """Number of runs that match the filter, in these work queues if given."""
        return call(
            lambda: self.client.count_flow_runs(
                flow_filter=_FLOW, flow_run_filter=run_filter, work_queue_filter=_queue_filter(queues)
            )
        )

    def propose(self, run_id: UUID, state: State[Any], force: bool = False) -> None:
        """Propose a state; read the run again to see whether Prefect accepted it."""
        actual = self.read_ids().run_of(run_id)
        call(lambda: self.client.set_flow_run_state(actual, state, force=force))

    def forget_process(self, run_id: UUID) -> None:
        """Clear the id of a process that is known to be gone."""
        change = {"infrastructure_pid": None}
        params = {"id": self.read_ids().run_of(run_id)}
        call(lambda: self.client.request("PATCH", "/flow_runs/{id}", path_params=params, json=change))


def new_run(state: State[Any], **values: Any) -> DeploymentFlowRunCreate:
    """Describe a new run of the deployment by `parameters, tags, name, work_queue_name, idempotency_key`.

    Prefect's validation of the parameters' JSON schema, three fifths of the request's time, is skipped: `JobSpec` has
    validated more. Runs from Prefect's UI are still validated.
    """
    return DeploymentFlowRunCreate(state=to_state_create(state), enforce_parameter_schema=False, **values)


def _to_body(wanted: DeploymentFlowRunCreate) -> dict[str, Any]:
    return wanted.model_dump(mode="json", exclude_unset=True)


def _means_unsupported(error: StackError) -> bool:
    """Whether the server lacks the endpoint of a request."""
    cause = error.__cause__
    status = cause.response.status_code if isinstance(cause, httpx.HTTPStatusError) else None
    return status == httpx.codes.METHOD_NOT_ALLOWED or means_missing(error)


def _name_jobs(runs: list[FlowRun], ids: RunIds) -> list[FlowRun]:
    return [run if (job_id := ids.job_of(run.id)) == run.id else run.model_copy(update={"id": job_id}) for run in runs]


def _name_runs(run_filter: filters.FlowRunFilter, ids: RunIds) -> filters.FlowRunFilter:
    """Replace job ids by run ids in a filter."""
    if run_filter.id is None:
        return run_filter
    named = {
        key: None if job_ids is None else [ids.run_of(job_id) for job_id in job_ids]
        for key, job_ids in (("any_", run_filter.id.any_), ("not_any_", run_filter.id.not_any_))
    }
    return run_filter.model_copy(update={"id": filters.FlowRunFilterId(**named)})


def _queue_filter(names: list[str] | None) -> filters.WorkQueueFilter | None:
    return filters.WorkQueueFilter(name=filters.WorkQueueFilterName(any_=names)) if names else None


def state_filter(
    types: Sequence[str] | None = None, names: Sequence[str] | None = None, not_names: Sequence[str] | None = None
) -> filters.FlowRunFilterState:
    """Filter for runs in a state of one of these types *or* names; or of these types and none of `not_names`."""
    by_type = filters.FlowRunFilterStateType.model_validate({"any_": [*types]}) if types else None
    if names:
        by_name = filters.FlowRunFilterStateName(any_=[*names])
        return filters.FlowRunFilterState.model_validate({"operator": "or_", "type": by_type, "name": by_name})
    excluded = filters.FlowRunFilterStateName(not_any_=[*not_names]) if not_names else None
    return filters.FlowRunFilterState(type=by_type, name=excluded)


def due_between(after: datetime | None, before: datetime) -> filters.FlowRunFilterNextScheduledStartTime:
    """Filter for runs that were scheduled from `after` to `before`, both included."""
    return filters.FlowRunFilterNextScheduledStartTime.model_validate({"after_": after, "before_": before})
