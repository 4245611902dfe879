"""When the deployments are made anew, and what stays as the user has it."""

import json
import sys
from contextlib import closing

import httpx
import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import create_model

from flows.finetune import finetune
from flows.retrain import retrain
from jobs.project import PROJECT_ROOT
from jobs.retrain_spec import RetrainSpec
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.stack import deployments
from jobs.stack.deployments import FLOW_PARAMETERS, deploy, fingerprint
from jobs.stack.own_server import deploy_to_own_server
from jobs.stack.parts import stack_environment
from sft.errors import StackError
from tests.client.scripted_service import Scripted, ScriptedService
from tests.conftest import free_port


@pytest.mark.parametrize(("flow", "model"), [(finetune, JobSpec), (retrain, RetrainSpec)])
def test_the_parameters_of_a_flow_are_the_fields_of_its_model(flow, model):
    form, schema = parameter_schema(flow).model_dump(), model.model_json_schema()
    assert set(form["properties"]) == set(schema["properties"])
    assert [*form["properties"]][: len(schema["required"])] == schema["required"], "what is required comes first"
    assert form["required"] == schema["required"]
    for name, field in form["properties"].items():
        assert field.get("default") == schema["properties"][name].get("default"), name
        assert field["description"], name


@pytest.mark.parametrize("model", [JobSpec, RetrainSpec])
@pytest.mark.parametrize("change", [{"further": (int, 1)}, {"adapter_name": (str, "another default")}])
def test_whatever_changes_a_form_changes_the_fingerprint(monkeypatch, model, change):
    before = fingerprint("file", "gpu")
    changed = create_model("Changed", __base__=model, **change)
    models = tuple(changed if one is model else one for one in FLOW_PARAMETERS)
    monkeypatch.setattr(deployments, "FLOW_PARAMETERS", models)
    assert fingerprint("file", "gpu") != before


def test_the_fingerprint_is_that_of_the_file_and_the_pool_too():
    assert fingerprint("file", "gpu") == fingerprint("file", "gpu")
    assert len({fingerprint("file", "gpu"), fingerprint("another", "gpu"), fingerprint("file", "cpu")}) == 3


@pytest.mark.stack
def test_schedules_are_the_users_once_the_deployment_is_there(stack: Settings, tmp_path):
    url = str(stack.prefect_api_url)

    def read():
        found = httpx.get(f"{url}/deployments/name/retrain/retrain", timeout=30).raise_for_status().json()
        return found["id"], {(one["id"], one["slug"], one["active"]) for one in found["schedules"]}

    deployment_id, before = read()
    nightly = {"schedule": {"cron": "0 3 * * *"}, "active": False, "parameters": {"adapter_name": "mine"}}
    (made,) = (
        httpx.post(f"{url}/deployments/{deployment_id}/schedules", json=[nightly | {"slug": "mine"}], timeout=30)
        .raise_for_status()
        .json()
    )
    try:
        assert deploy(stack, stack.work_pool, tmp_path, stack_environment(stack))  # with no stamp: made anew
        assert read() == (deployment_id, before | {(made["id"], "mine", False)})
    finally:
        httpx.delete(f"{url}/deployments/{deployment_id}/schedules/{made['id']}", timeout=30)


@pytest.mark.stack
def test_a_server_of_ones_own_gets_nothing_of_the_path_of_this_machine(stack: Settings, tmp_path):
    """Any worker runs it that has Tuneyard installed, wherever that is."""
    url = str(stack.prefect_api_url)
    limit = httpx.get(f"{url}/work_pools/{stack.work_pool}", timeout=30).json()["concurrency_limit"]
    try:
        pool = deploy_to_own_server(stack.model_copy(update={"home": tmp_path}), None).pool
        assert (pool["name"], pool["type"], pool["concurrency_limit"]) == (stack.work_pool, "process", limit)
        for name in ("finetune/sft", "retrain/retrain"):
            made = httpx.get(f"{url}/deployments/name/{name}", timeout=30).raise_for_status().json()
            assert made["job_variables"]["command"] == "python -m jobs.keeper"
            assert not made["pull_steps"]
            assert not any(str(folder) in json.dumps(made) for folder in (PROJECT_ROOT, tmp_path, sys.executable))
    finally:
        assert deploy(stack, stack.work_pool, tmp_path, stack_environment(stack))


def test_a_server_of_ones_own_must_be_named_and_let_us_in(tmp_path):
    with pytest.raises(StackError, match="set PREFECT_API_URL"):
        deploy_to_own_server(Settings(home=tmp_path), None)
    settings = Settings(home=tmp_path, prefect_api_url=f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(StackError, match=r"can't be reached \(no connection\)"):
        deploy_to_own_server(settings, None)
    database = f"postgresql://127.0.0.1:{free_port()}/tuneyard"
    with pytest.raises(StackError, match=r"the database of TUNEYARD_DATABASE_URL can't be used \(no connection"):
        deploy_to_own_server(settings.model_copy(update={"database_url": database}), None)
    with closing(ScriptedService(Scripted(401, "Unauthorized"))) as server:
        settings = Settings(home=tmp_path, prefect_api_url=f"{server.url}/api")
        with pytest.raises(StackError, match="responds with 401; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"):
            deploy_to_own_server(settings, 3)
