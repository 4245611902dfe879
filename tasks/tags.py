"""Sets the tags by which lists of jobs are filtered; a job submitted over REST has them from the start."""

from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State

from jobs.spec import read_spec


def tag_job(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """State hook of the flow: tag a run from Prefect's UI or a schedule when it starts."""
    spec = read_spec(flow_run.parameters).spec
    if spec is None:
        return  # the flow itself fails in a moment, and says why
    tags = {*spec.tags()}
    if tags <= set(flow_run.tags):
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted(tags.union(flow_run.tags)))
