"""What Prefect's workers make of a job template, by their own models and with no server."""

import asyncio
from typing import Any
from uuid import uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.workers.base import BaseJobConfiguration

from jobs.stack.deployments import read_deployments
from jobs.stack.job_templates import make_template

NOBODY = "http://127.0.0.1:9/api"  # is asked for blocks and variables alone, of which there are none


def prepare(kind: type[BaseJobConfiguration], pool_type: str, **values: Any) -> Any:
    """The configuration of a run of the deployment `sft`, in a pool of this type with these values."""
    template = make_template(pool_type)
    assert template is not None
    variables = read_deployments()[0]["work_pool"]["job_variables"] | {"image": "tuneyard:1"} | values
    client = PrefectClient(NOBODY)
    made = asyncio.run(kind.from_template_and_values(base_job_template=template, values=variables, client=client))
    run = FlowRun(id=uuid4(), flow_id=uuid4(), name="a job's run")
    made.prepare_for_flow_run(run, None, Flow(id=uuid4(), name="finetune"))
    return made
