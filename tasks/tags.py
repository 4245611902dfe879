"""Tags of a job's run: what the lists filter by. A job over REST has them from the start."""

from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State

from jobs.spec import read_spec


def tag_job(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Give a run from Prefect's UI or a schedule the tags of its job, as it starts; a hook of the flow."""
    spec = read_spec(flow_run.parameters).spec
    if spec is None:
        return  # the flow itself fails in a moment, and says why
    tags = {*spec.tags()}
    if tags <= set(flow_run.tags):
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted(tags.union(flow_run.tags)))
