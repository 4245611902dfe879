"""Tags of a job's run: what the lists filter by. A job over REST has them from the start."""

from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State

from jobs.spec import JobSpec
from sft.errors import InvalidConfig


def tag_job(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Give a run from Prefect's UI or a schedule the tags of its job, as it starts; a hook of the flow."""
    known = {key: value for key, value in flow_run.parameters.items() if key in JobSpec.model_fields}
    try:
        tags = {*JobSpec.build(**known).tags()}
    except InvalidConfig:
        return  # the flow itself fails with this error in a moment
    if tags <= set(flow_run.tags):
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted(tags.union(flow_run.tags)))
