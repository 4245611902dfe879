"""Jobs that do not come in over REST: the Prefect UI, a plain Python script, the nightly retraining."""

import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta

import pytest
from prefect.states import Scheduled

from tests.conftest import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


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


def test_a_run_as_a_schedule_makes_it_is_listed_before_its_time_and_filtered_once_it_has_begun(prefect, api, wait_for):
    deployment = prefect.read_deployment_by_name("finetune/sft")
    config = {"base_model": "nobody/scheduled", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
    soon = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(seconds=4))
    run = prefect.create_flow_run_from_deployment(deployment.id, parameters={"config": config}, state=soon)

    assert is_listed(api, str(run.id), status="queued")
    assert not is_listed(api, str(run.id), model="nobody/scheduled")
    job = wait_for(str(run.id))
    assert job["status"] == "failed"
    assert "nobody/scheduled" in job["error"]
    for wanted in ({"model": "nobody/scheduled"}, {"adapter": "scheduled-handbook"}, {"dataset": "handbook@v1.0"}):
        assert is_listed(api, str(run.id), **wanted), wanted


def test_the_ui_tells_where_a_job_is(prefect, api, wait_for):
    job = next(job for job in api.get("/train").json() if job["status"] == "completed")
    tasks = prefect.read_task_runs(flow_run_filter=_by_id(job["job_id"]))
    names = [task.name for task in sorted(tasks, key=lambda task: task.start_time)]
    wait_until(lambda: "Registered models:/" in _read_log(prefect, job["job_id"]), 20)  # lines are sent in batches

    assert "Evaluate base model" in names
    assert "Evaluate adapter" in names
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


def test_retraining_starts_a_job_only_when_the_data_has_changed(prefect, api, model, wait_for):
    body = {"model_name": model, "dataset_version": "v1.0", "template": "chatml", "lora_name": "nightly"}
    body |= {"max_samples": 8, "max_steps": 1}
    assert wait_for(api.post("/train", json=body).json()["job_id"])["status"] == "completed"

    _retrain(prefect, "nightly", "v1.0", says="has not changed since version 1 of nightly")
    _retrain(prefect, "nobody", "main", says="No adapter named nobody is registered yet")

    before = {job["job_id"] for job in api.get("/train").json()}
    _retrain(prefect, "nightly", "main", says="retrains nightly")
    (job_id,) = {job["job_id"] for job in api.get("/train").json()} - before
    assert is_listed(api, job_id, adapter="nightly", model=model, dataset="handbook")
    job = wait_for(job_id)
    assert (job["status"], job["result"]["model_version"]) == ("completed", "2")
    assert job["config"]["max_steps"] == 1


def _retrain(prefect, adapter_name, dataset_version, says):
    """Run the retrain deployment to its end, and wait until its log says so."""
    deployment = prefect.read_deployment_by_name("retrain/retrain")
    parameters = {"adapter_name": adapter_name, "dataset_version": dataset_version}
    run = prefect.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    wait_until(lambda: prefect.read_flow_run(run.id).state.is_final(), 90)
    assert prefect.read_flow_run(run.id).state.is_completed()
    wait_until(lambda: says in _read_log(prefect, run.id), 20)


def _read_log(prefect, run_id):
    """A run's log as Prefect's UI shows it."""
    return "\n".join(log.message for log in prefect.read_logs(_logs_of(run_id), limit=200))
