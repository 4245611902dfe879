"""A run whose parameters do not suit its flow fails at once, with a sentence. Prefect leaves it pending."""

import logging
import os
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectException
from prefect.states import Failed
from sqlalchemy.exc import SQLAlchemyError

from jobs.progress import write_report
from jobs.retrain_spec import RetrainSpec
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import engine_for
from sft.errors import InvalidConfig, walk_causes
from tasks.causes import is_about_parameters

logger = logging.getLogger(__name__)

SPECS: dict[str, type[JobSpec | RetrainSpec]] = {"finetune": JobSpec, "retrain": RetrainSpec}


def fail_if_refused(end: BaseException) -> None:
    """Fail this process's run if it has ended because Prefect could not call the flow with its parameters.

    They come from a schedule or from an edited run, which Prefect does not check. What goes wrong here is left to the
    watchdog, which finds a run without a process.
    """
    error = next(filter(is_about_parameters, walk_causes(end)), None)
    if error is None:
        return
    run_id = UUID(os.environ["PREFECT__FLOW_RUN_ID"])
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(run_id)
            message = _explain(client, run) or str(error)
            _write(run_id, message)
            client.set_flow_run_state(run_id, Failed(message=f"{InvalidConfig.code}: {message}"))
    except (HTTPError, PrefectException, SQLAlchemyError) as problem:
        logger.warning("That its parameters are refused could not be told (%s)", type(problem).__name__)


def _explain(client: SyncPrefectClient, run: FlowRun) -> str | None:
    spec = SPECS.get(client.read_flow(run.flow_id).name)
    if spec is None:
        return None
    try:
        spec.build(**run.parameters)
    except InvalidConfig as error:
        return "; ".join(str(error).splitlines())
    return None


def _write(run_id: UUID, message: str) -> None:
    if database_url := Settings().database_url:
        write_report(engine_for(database_url), run_id, error=message, error_code=InvalidConfig.code)
