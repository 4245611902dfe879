"""Fails a run at once if its parameters do not suit its flow; Prefect would leave it pending."""

import logging
import os
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectException
from prefect.states import Failed
from sqlalchemy.exc import SQLAlchemyError

from jobs.lifecycle.ends import keep_run, record_end
from jobs.retrain_spec import RetrainSpec
from jobs.settings import Settings
from jobs.spec import read_spec
from jobs.status import JobStatus
from jobs.storage.claims import claim
from jobs.storage.run_ids import find_job
from jobs.storage.tables import engine_for
from jobs.vocabulary import FLOW_NAME, RETRAIN_FLOW_NAME
from sft.errors import InvalidConfig, walk_causes
from tasks.causes import is_about_parameters

logger = logging.getLogger(__name__)


def fail_if_refused(end: BaseException) -> None:
    """Fail this process's run if Prefect could not call the flow with its parameters.

    They come from a schedule or an edited run, which Prefect does not validate. Errors here are left to the
    watchdog, which finds a run without a process.
    """
    error = next(filter(is_about_parameters, walk_causes(end)), None)
    if error is None:
        return
    run_id = UUID(os.environ["PREFECT__FLOW_RUN_ID"])
    try:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(run_id)
            flow_name = client.read_flow(run.flow_id).name
            message = _explain(flow_name, run) or str(error)
            if flow_name == FLOW_NAME:
                _end_job(run, message)
            client.set_flow_run_state(run_id, Failed(message=f"{InvalidConfig.code}: {message}"))
    except (HTTPError, PrefectException, SQLAlchemyError) as problem:
        logger.warning("Failing the run because of its parameters did not work (%s)", type(problem).__name__)


def _explain(flow_name: str, run: FlowRun) -> str | None:
    problem = None
    if flow_name == FLOW_NAME:
        problem = read_spec(run.parameters).problem
    elif flow_name == RETRAIN_FLOW_NAME:
        try:
            RetrainSpec.build(**run.parameters)
        except InvalidConfig as error:
            problem = str(error)
    return "; ".join(problem.splitlines()) if problem else None


def _end_job(run: FlowRun, message: str) -> None:
    database_url = Settings().database_url
    if database_url is None:
        return
    with engine_for(database_url).begin() as connection:
        if claim(connection, run.id):
            return
        job_id = find_job(connection, run.id)
        keep_run(connection, job_id, run.model_dump(mode="json"))
        record_end(connection, job_id, JobStatus.FAILED, message, InvalidConfig.code)
