"""State hooks of the flow: Prefect calls them when a job's run starts and when it ends."""

from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled

from jobs.lifecycle.ends import ENDED, settle
from jobs.settings import Settings
from jobs.spec import read_spec
from jobs.storage.claims import claim
from jobs.storage.run_ids import find_job
from jobs.storage.tables import engine_for


def tag_job(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Set the tags by which lists of jobs are filtered; a job submitted over REST has them from the start."""
    spec = read_spec(flow_run.parameters).spec
    if spec is None:
        return  # the flow itself fails in a moment, and says why
    tags = {*spec.tags()}
    if tags <= set(flow_run.tags):
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted(tags.union(flow_run.tags)))


def write_end(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Write the end of a job whose process could not, and queue its webhook; no effect if it was written before.

    For a run that fails before our code starts (on edited, invalid parameters, say) or that is cancelled.
    """
    if state.is_crashed() and _was_cancelled(flow_run):
        state = Cancelled()
    database_url = Settings().database_url
    if database_url is None or state.type.value not in ENDED:
        return
    facts = flow_run.model_dump(mode="json", exclude={"state"})  # it has the exception, which is not JSON
    run = facts | {"state_type": state.type.value, "state": {"message": state.message}}
    with engine_for(database_url).begin() as connection:
        if claim(connection, flow_run.id):
            return  # this process is none of the job's, or the job has ended
        settle(connection, run | {"id": str(find_job(connection, flow_run.id))})


def _was_cancelled(flow_run: FlowRun) -> bool:
    """Whether a run that Prefect reports as crashed was cancelled; its state is then corrected.

    A worker that learns of a cancellation late mistakes the end of the stopped process for a crash.
    """
    with get_client(sync_client=True) as client:
        if all(passed.type is not StateType.CANCELLING for passed in client.read_flow_run_states(flow_run.id)):
            return False
        client.set_flow_run_state(flow_run.id, Cancelled(), force=True)
        return True
