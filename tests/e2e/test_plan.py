"""Plans over the real stack: both routes, the command line, the client, and whether the job then does as planned."""

import json
import os
import subprocess
import sys

import pytest

from jobs.settings import PROJECT_ROOT
from tests.conftest import wait_until
from tuneyard_client import AsyncTuneyard, Tuneyard
from tuneyard_client.errors import ClientError

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

BODY = {
    "mixed_precision": "none",
    "template": "chatml",
    "max_samples": 24,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
}


@pytest.fixture(scope="module")
def body(model):
    """A job in the Training API's words."""
    return BODY | {"model_name": model, "dataset_version": "v1.1", "lora_name": "planned"}


@pytest.fixture(scope="module")
def sft_config(model):
    """The same job in the SFT API's words."""
    return {
        "base_model": model,
        "dataset_name": "handbook@v1.1",
        "dataset_format": "auto",
        "template_name": "chatml",
        "max_samples": 24,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 2e-5,
        "mixed_precision": "none",
    }


def without_measures(plan):
    """What of a plan does not depend on the moment."""
    kept = ("dataset", "rows", "tokens", "batches", "steps", "epochs", "samples")
    return {name: plan[name] for name in kept}


def test_the_job_does_what_the_plan_said(api, body, wait_for):
    before = len(api.get("/train").json())
    answer = api.post("/train/plan", json=body)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert len(api.get("/train").json()) == before

    job = wait_for(api.post("/train", json=body).json()["job_id"])
    again = api.post("/train/plan", json=body).json()

    assert job["status"] == "completed", job["error"]
    metrics = job["result"]["metrics"]
    assert plan["steps"] == job["progress"]["total_steps"] == 6
    assert plan["batches"]["tokens_per_epoch"] == plan["rows"]["train"]["tokens"] == metrics["tokens"]
    assert plan["dataset"]["md5"] == job["result"]["dataset_md5"]
    assert plan["dataset"]["commit"] == job["result"]["dataset_commit"]
    assert plan["disk"]["fits"] is plan["memory"]["fits"] is True
    assert [len(plan["samples"]), again["was_tokenized_before"]] == [3, True]
    # The plan tokenized with the job's settings, so the job did not.
    wait_until(lambda: "Using cached tokens" in api.get(f"/train/{job['job_id']}/logs").text, 30)
    assert without_measures(again) == without_measures(plan)
    # The job itself is now one of those that the next plan goes by.
    assert (again["time"]["basis"], again["time"]["past_runs"] >= 1) == ("past_runs", True)
    past = api.get("/train", params={"status": "completed"}).json()
    assert 0 < again["time"]["startup_seconds"] < max(one["end_time"] - one["start_time"] for one in past)


def test_the_two_dialects_give_the_same_plan(api, body, sft_config):
    training = api.post("/train/plan", json=body).json()
    sft = api.post("/api/sft/plan", json={"config": sft_config}).json()
    saved = api.post("/api/sft/configs", json={"name": "planned", "config": sft_config}).json()
    from_saved = api.post("/api/sft/plan", json={"config_id": saved["config_id"], "config": {"num_epochs": 2}}).json()

    assert without_measures(training) == without_measures(sft)
    assert from_saved["steps"] == 2 * sft["steps"]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"dataset_version": "v9.9"}, 404, "dataset_not_found"),
        ({"model_name": "nobody/nothing"}, 404, "model_not_found"),
        ({"template": "llama3"}, 422, "template_not_found"),
        ({"template": "qwem"}, 422, "invalid_request"),
        ({"learning_rate": -1}, 422, "invalid_request"),
        ({"lora_target_modules": ["nothing"]}, 422, "invalid_config"),
    ],
)
def test_what_can_not_be_planned_says_why(api, body, change, status, code):
    answer = api.post("/train/plan", json=body | change)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"detail", "code", "request_id"}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"dataset_name": "nothing-of-the-kind.json"}, 404, "dataset_not_found"),
        ({"template_name": "llama3"}, 400, "template_not_found"),
        ({"batch_size": 0}, 400, "invalid_config"),
    ],
)
def test_the_sft_api_says_why_too(api, sft_config, change, status, code):
    answer = api.post("/api/sft/plan", json={"config": sft_config | change})

    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_clients_plan(api, body, sft_config):
    url = str(api.base_url)
    with Tuneyard(url) as client:
        plan, same = client.plan(body), client.plan_sft(sft_config)
        with pytest.raises(ClientError) as refused:
            client.plan(body | {"dataset_version": "v9.9"})

    assert plan.rows.train.used == same.rows.train.used > 0
    assert plan.memory.fits
    assert "few_rows" in [warning.code for warning in plan.warnings]
    assert (refused.value.status, refused.value.code) == (404, "dataset_not_found")


def test_the_async_clients_plan(api, body):
    import asyncio

    async def ask():
        async with AsyncTuneyard(str(api.base_url)) as client:
            return await client.plan(body)

    assert asyncio.run(ask()).steps == 6


def run_command(environment, *arguments):
    """`tuneyard plan`; what it printed, its errors, its exit code."""
    command = [sys.executable, "-m", "cli", "plan", *arguments]
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr, done.returncode


def test_the_command(api, environment, model, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(BODY | {"model_name": model}), encoding="utf-8")
    url = ["--url", str(api.base_url)]
    text, _, exit_code = run_command(environment, "-f", str(file), "--dataset", "v1.1", *url)
    shown, _, _ = run_command(environment, "-f", str(file), "--dataset", "v1.1", "--json", *url)
    _, errors, failed = run_command(environment, "-f", str(file), "--dataset", "v9.9", *url)

    assert exit_code == 0
    assert "steps  6 in 1 epochs" in text
    assert "»" in text
    assert json.loads(shown)["steps"] == 6
    assert failed == 3
    assert errors.startswith("tuneyard: ")
    assert "v9.9" in errors


def test_the_command_without_a_service(stack, model):
    environment = os.environ | {"TUNEYARD_HOME": str(stack.home)}
    options = [f"--set={key}={value}" for key, value in BODY.items()]
    named = ["--model", model, "--dataset", "v1.1"]
    shown, errors, exit_code = run_command(environment, "--here", "--json", *named, *options)
    _, refused, failed = run_command(environment, "--here", *named, "--set=learning_rate=-1")

    assert exit_code == 0, errors
    assert json.loads(shown)["steps"] == 6
    assert failed == 3
    assert "learning_rate" in refused
