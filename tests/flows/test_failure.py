"""What a failing run leaves behind: in the log of its process, which the worker's is, and in Prefect."""

import logging
import os
import subprocess
import sys
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.states import Pending

from jobs.settings import PROJECT_ROOT
from jobs.storage.reports import read_reports
from jobs.storage.tables import engine_for
from tests.flows.failing import failing

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def prefect(stack):
    with SyncPrefectClient(str(stack.prefect_api_url)) as client:
        yield client


@pytest.fixture(scope="module")
def deployment_id(prefect):
    flow_id = prefect.create_flow(failing)
    entrypoint = "tests/flows/failing.py:failing"
    return prefect.create_deployment(flow_id, "failing", path=str(PROJECT_ROOT), entrypoint=entrypoint)


@pytest.fixture
def run_in_a_process(prefect, stack, deployment_id):
    """Runs the flow as a worker does; its last state, its process's log and its errors in Prefect's log."""

    def run(kind=None, run_id=None):
        if run_id is None:
            made = prefect.create_flow_run_from_deployment(deployment_id, parameters={"kind": kind}, state=Pending())
            run_id = made.id
        environment = os.environ | {
            "PREFECT__FLOW_RUN_ID": str(run_id),
            "PREFECT_API_URL": str(stack.prefect_api_url),
            "TUNEYARD_HOME": str(stack.home),
            "TUNEYARD_DATABASE_URL": str(stack.database_url),
            "COLUMNS": "500",
        }
        command = [sys.executable, "-m", "flows"]
        done = subprocess.run(
            command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=250
        )
        logs = prefect.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
        assert not any("Traceback" in log.message for log in logs)
        errors = [log.message for log in logs if log.level >= logging.ERROR]
        return prefect.read_flow_run(run_id).state, done.stderr, errors

    return run


@pytest.mark.parametrize(
    ("kind", "line", "tracebacks"),
    [
        ("invalid dataset", "invalid_dataset: row 3: no answer", 0),
        ("bug", "internal_error: KeyError: 'heads'", 1),
    ],
)
def test_one_line_says_why_and_only_a_bug_has_a_traceback_in_the_process_log(run_in_a_process, kind, line, tracebacks):
    state, written, errors = run_in_a_process(kind)
    assert state.is_failed()
    assert written.count("Traceback") == tracebacks, written
    assert written.count(line.split(": ", 1)[1]) == 1 + tracebacks, written
    assert errors == [line]


def test_a_state_that_the_flow_has_chosen_is_no_error(run_in_a_process):
    state, written, errors = run_in_a_process("nothing")
    assert (state.type.value, state.name, state.message) == ("CANCELLED", "Unchanged", "as it was")
    assert (written.count("Traceback"), errors) == (0, [])


@pytest.mark.parametrize(
    ("deployment", "parameters", "said"),
    [
        ("retrain/retrain", {"adaptername": "x"}, "did you mean adapter_name?"),
        ("finetune/sft", {"config": {}, "metadatas": {}}, "metadatas is not a known field; did you mean metadata?"),
    ],
)
def test_parameters_that_do_not_suit_the_flow_fail_the_run_at_once(
    prefect, stack, run_in_a_process, deployment, parameters, said
):
    deployment_id = prefect.read_deployment_by_name(deployment).id
    body = {"parameters": parameters, "state": {"type": "PENDING"}, "enforce_parameter_schema": False}
    path = f"/deployments/{deployment_id}/create_flow_run"
    run_id = prefect._client.post(path, json=body).json()["id"]
    state, written, errors = run_in_a_process(run_id=run_id)
    assert state.is_failed()
    assert said in state.message
    assert state.message.startswith("invalid_config: ")
    assert written.count("Traceback") == 0, written
    (error,) = errors
    assert error.startswith("invalid_config: the run's parameters do not suit its flow (")
    reports = read_reports(engine_for(stack.database_url), [UUID(run_id)])
    ends = [(report.status, report.error_code, said in report.error) for report in reports.values()]
    assert ends == ([("failed", "invalid_config", True)] if deployment == "finetune/sft" else [])
