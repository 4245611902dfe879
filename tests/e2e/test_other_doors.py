"""Jobs that do not come in over REST: the Prefect UI, a plain Python script, the nightly retraining."""

import logging
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled

from flows.retrain import retrain
from jobs.engine.pool import POOL_TTL_SECONDS
from tests.conftest import wait_until
from tests.workers import StackWorkers

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


def test_the_prefect_ui_shows_the_parameters_as_a_form(prefect):
    deployment = prefect.read_deployment_by_name("finetune/sft")
    schema = deployment.parameter_openapi_schema

    assert schema["required"] == ["config"]
    fields = schema["definitions"]["SFTConfig"]
    assert fields["required"] == ["base_model", "dataset_name", "dataset_format"]
    assert fields["properties"]["lora_r"]["default"] == 8
    assert fields["properties"]["lora_r"]["description"] == "LoRA rank."


def test_a_run_from_the_prefect_ui_is_a_job_in_both_dialects(prefect, api, model, wait_for):
    deployment = prefect.read_deployment_by_name("finetune/sft")
    config = {"base_model": model, "dataset_name": "handbook@v1.0", "dataset_format": "auto", "max_steps": 1}
    config |= {"template_name": "chatml", "max_samples": 8}
    parameters = {"config": config, "metadata": {"from": "the UI"}}
    run = prefect.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    assert str(run.id) in [job["job_id"] for job in api.get("/train").json()]
    assert str(run.id) in [job["job_id"] for job in api.get("/api/sft/jobs").json()["jobs"]]
    job = wait_for(str(run.id))
    assert job["status"] == "completed", job["error"]
    assert job["config"]["dataset_version"] == "v1.0"
    assert job["config"]["lora_r"] == 8
    assert job["result"]["model_name"] == "llama-handbook"
    for wanted in (
        {"model": model},
        {"adapter": "llama-handbook"},
        {"dataset": "handbook"},
        {"dataset": "handbook@v1.0"},
        {"metadata": "from:the UI"},
        {"status": "completed"},
        {"created_before": datetime.now(UTC).isoformat()},
    ):
        assert is_listed(api, str(run.id), **wanted), wanted
    assert not is_listed(api, str(run.id), metadata="from:elsewhere")


def is_listed(api, job_id, **wanted):
    """Whether both lists have this job among those of the filter, in the Training API's words."""
    in_training = job_id in [job["job_id"] for job in api.get("/train", params=wanted).json()]
    if wanted.get("status") == "queued":
        wanted["status"] = "pending"
    in_sft = job_id in [job["job_id"] for job in api.get("/api/sft/jobs", params=wanted).json()["jobs"]]
    assert in_training == in_sft
    return in_training


def test_a_run_as_a_schedule_makes_it_is_listed_before_its_time_and_filtered_once_it_has_begun(
    prefect, api, wait_for, stack
):
    deployment = prefect.read_deployment_by_name("finetune/sft")
    config = {"base_model": "nobody/scheduled", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
    soon = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(seconds=POOL_TTL_SECONDS + 3))
    workers = StackWorkers(stack)
    workers.pause(is_online=False)  # whenever the lists are looked at, it waits
    try:
        run = prefect.create_flow_run_from_deployment(deployment.id, parameters={"config": config}, state=soon)
        assert is_listed(api, str(run.id), status="queued")
        assert not is_listed(api, str(run.id), model="nobody/scheduled")
    finally:
        workers.resume()
    job = wait_for(str(run.id))
    assert job["status"] == "failed"
    assert "nobody/scheduled" in job["error"]
    wait_until(lambda: "ERROR" in _read_levels(prefect, run.id), 60)
    lines = [line for line in api.get(f"/train/{run.id}/logs").text.splitlines() if " ERROR " in line]
    assert [line.split(": ", 1)[1] for line in lines] == [f"model_not_found: {job['error']}"]
    assert "Traceback" not in _read_log(prefect, run.id)
    for wanted in ({"model": "nobody/scheduled"}, {"adapter": "scheduled-handbook"}, {"dataset": "handbook@v1.0"}):
        assert is_listed(api, str(run.id), **wanted), wanted


def test_the_ui_tells_where_a_job_is(prefect, api, wait_for):
    job = next(job for job in api.get("/train").json() if job["status"] == "completed")
    wait_until(lambda: "Registered models:/" in _read_log(prefect, job["job_id"]), 60)  # lines are sent in batches

    def names():
        return {task.name for task in prefect.read_task_runs(flow_run_filter=_by_id(job["job_id"]))}

    wait_until(lambda: {"Evaluate base model", "Evaluate adapter"} <= names(), 60)  # and so are the tasks' states
    assert "rows used" in _read_log(prefect, job["job_id"])


def _by_id(job_id):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    return FlowRunFilter(id=FlowRunFilterId(any_=[job_id]))


def _logs_of(job_id):
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    return LogFilter(flow_run_id=LogFilterFlowRunId(any_=[job_id]))


def test_the_documented_python_works_in_a_plain_script_with_no_api_running(environment, model, tmp_path, wait_for):
    script = textwrap.dedent(f"""
        from app.api.sft_job_manager import sft_job_manager
        from app.sft import SFTConfig

        config = SFTConfig(
            base_model="{model}",
            dataset_name="handbook@v1.0",
            dataset_format="alpaca",
            template_name="chatml",
            max_samples=8,
            max_steps=1,
        )

        job_id = sft_job_manager.create_job(config)
        status = sft_job_manager.get_job_status(job_id)
        assert status["status"] == "pending", status
        sft_job_manager.start_job(job_id)
        sft_job_manager.start_job(job_id)
        status = sft_job_manager.get_job_status(job_id)
        assert status["status"] in ("running", "pending"), status
        assert job_id in [job["job_id"] for job in sft_job_manager.list_jobs()]

        config_dict = {{"base_model": "gpt2", "dataset_name": "tatsu-lab/alpaca", "use_lora": True}}
        config_id = sft_job_manager.save_config("my_config", config_dict)
        assert sft_job_manager.get_config(config_id)["config"] == config_dict
        for unknown in ("nonsense", job_id):
            try:
                sft_job_manager.get_config(unknown)
            except ValueError as error:
                assert str(error) == f"Config {{unknown}} not found", error
            else:
                raise AssertionError(unknown)
        print(job_id)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert wait_for(done.stdout.strip())["status"] == "completed"


def test_retraining_starts_a_job_only_when_the_data_has_changed(prefect, look, api, model, wait_for):
    body = {"model_name": model, "dataset_version": "v1.0", "template": "chatml", "lora_name": "nightly"}
    body |= {"max_samples": 8, "max_steps": 1}
    first = wait_for(api.post("/train", json=body).json()["job_id"])
    assert (first["status"], first["made_by"], first["result"]["previous_version"]) == ("completed", None, None)

    unchanged = look(adapter_name="nightly", dataset_version="v1.0")
    assert (unchanged.type.value, unchanged.name) == ("CANCELLED", "Unchanged")
    assert "has not changed since version 1 of nightly" in unchanged.message
    mistyped = look(adapter_name="nigthly")
    assert mistyped.is_failed()
    assert "adapter_name 'nigthly' is not in the registry; did you mean nightly?" in mistyped.message

    deployment = prefect.read_deployment_by_name("retrain/retrain")
    run = prefect.create_flow_run_from_deployment(deployment.id, parameters={"adapter_name": "nightly"})
    wait_until(lambda: prefect.read_flow_run(run.id).state.is_final(), 180)
    assert prefect.read_flow_run(run.id).state.name == "Completed"
    at_once = look(adapter_name="nightly")
    assert at_once.name in ("AlreadyRetraining", "Unchanged")  # a tiny job may have ended

    (job,) = [job for job in api.get("/train", params={"adapter": "nightly"}).json() if job["made_by"]]
    assert (job["made_by"]["flow"], job["made_by"]["run_id"]) == ("retrain", str(run.id))
    assert job["made_by"]["adapter_version"] == "1"
    assert job["made_by"]["reason"].startswith("handbook has changed since version 1 of nightly (md5 ")
    job = wait_for(job["job_id"])
    assert (job["status"], job["config"]["max_steps"]) == ("completed", 1)
    result = job["result"]
    assert (result["model_version"], result["previous_version"]) == ("2", "1")
    assert result["previous_eval_loss"] == first["result"]["eval_loss"]


@pytest.fixture
def look(stack, prefect, monkeypatch):
    """Runs the flow here; the state it ends in."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(stack.mlflow_tracking_uri))
    monkeypatch.setenv("TUNEYARD_DATABASE_URL", str(stack.database_url))
    monkeypatch.setenv("TUNEYARD_HOME", str(stack.home))
    monkeypatch.setenv("PREFECT_API_URL", str(stack.prefect_api_url))
    with temporary_settings({PREFECT_API_URL: str(stack.prefect_api_url)}):
        yield lambda **parameters: retrain(**parameters, return_state=True)


def _read_levels(prefect, run_id):
    return [logging.getLevelName(log.level) for log in prefect.read_logs(_logs_of(run_id), limit=200)]


def _read_log(prefect, run_id):
    """A run's log as Prefect's UI shows it."""
    return "\n".join(log.message for log in prefect.read_logs(_logs_of(run_id), limit=200))
