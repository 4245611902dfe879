"""The main job over real servers: REST, Prefect, DVC, tokenizing, training, evaluation, MLflow, webhook."""

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from jobs.lifecycle.attempts import read_attempts
from jobs.storage.tables import engine_for
from tasks.tracking import CONFIG_FILE
from tests.conftest import wait_until
from tests.e2e.line import NOBODY
from tests.e2e.wandb_files import read_history
from tests.processes import find_processes

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

SMALL = {"template": "chatml", "max_samples": 24, "batch_size": 4, "gradient_accumulation_steps": 1, "num_epochs": 1}

LOAD_ALONE = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
model_dir, adapter_dir = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapter_dir)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapter_dir)
text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
print(json.dumps({"prompt": text, "eos": tokenizer.eos_token,
                  "project": [name for name in sys.modules if name in ("sft", "tasks", "jobs", "flows")]}))
"""


@pytest.fixture(scope="module")
def finished(api, model, receiver, wait_for):
    """One job, run to its end; those of other tests have left the line."""
    wait_until(lambda: api.get("/queue").json() == NOBODY, 120)
    body = SMALL | {
        "model_name": model,
        "dataset_version": "v1.1",
        "lora_name": "support",
        "logging_backend": "mlflow",
        "learning_rate": "1e-2",
        "webhook_url": receiver.url,
    }
    answer = api.post("/train", json=body)
    assert answer.status_code == 200
    assert answer.json()["status"] == "started"
    assert answer.json()["message"] == "Training job started"
    return wait_for(answer.json()["job_id"])


def test_the_job_completes_and_says_what_it_did(finished):
    assert (finished["status"], finished["error"]) == ("completed", None)
    result = finished["result"]
    assert result["eval_loss"] < result["base_eval_loss"]
    assert finished["progress"]["step"] == finished["progress"]["total_steps"] == 6
    assert finished["progress"]["percent"] == 100
    assert finished["output_path"] == result["adapter_path"]
    train, held_out = result["rows"]["train"], result["rows"]["eval"]
    assert (train["rows"], train["used"], train["skipped"], train["reasons"]) == (24, 24, 0, [])
    assert held_out["used"] > 0
    assert isinstance(result["rows"]["ignored"], dict)
    assert all(isinstance(sentence, str) for sentence in result["warnings"])
    assert 0 < finished["end_time"] - finished["start_time"] < 240


def test_the_other_dialect_shows_the_same_job(api, finished):
    job = api.get(f"/api/sft/jobs/{finished['job_id']}").json()

    assert job["status"] == "completed"
    assert job["result"] == finished["result"]
    assert datetime.fromisoformat(job["started_at"]).timestamp() == pytest.approx(finished["start_time"])
    assert job["config"]["dataset_name"] == "handbook@v1.1"


def test_the_adapter_loads_with_plain_peft_in_a_process_that_knows_nothing_of_us(finished, stack, model, tmp_path):
    command = [sys.executable, "-c", LOAD_ALONE, str(stack.model_root / model), finished["output_path"]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "eos": "<|im_end|>",
        "project": [],
    }


def test_mlflow_has_the_run_its_metrics_and_its_data(finished, stack):
    client = MlflowClient(stack.mlflow_tracking_uri)
    version = client.search_model_versions("name = 'support'")[0]
    run = client.get_run(version.run_id)
    data = run.inputs.dataset_inputs[0]

    assert finished["tracking_url"].endswith(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lora_r"] == "8"
    for metric in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch"):
        assert [point.step for point in client.get_metric_history(version.run_id, metric)] == [1, 2, 3, 4, 5, 6]
    measured = {point.step: point.value for point in client.get_metric_history(version.run_id, "eval_loss")}
    assert measured == {0: finished["result"]["base_eval_loss"], 6: finished["result"]["eval_loss"]}
    assert run.data.metrics["eval_loss"] == measured[6]  # the one its table shows
    assert run.data.metrics["epoch"] == pytest.approx(1)
    by_time = sorted(client.get_metric_history(version.run_id, "eval_loss"), key=lambda point: point.timestamp)
    assert [point.step for point in by_time] == [0, 6]  # though the start is evaluated last
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    stored = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert CONFIG_FILE in stored, "written before training: a store that can't be written ends the job then"
    assert data.dataset.name == "handbook"
    assert {tag.key: tag.value for tag in data.tags}["md5"] == finished["result"]["dataset_md5"]


def test_its_process_had_the_trainers_role_in_the_database(finished, stack):
    attempt = read_attempts(engine_for(stack.database_url), [UUID(finished["job_id"])])
    assert [one.database_role for one in attempt.values()] == ["tuneyard_trainer"]


def test_the_registry_finds_the_adapter_by_name(finished, stack, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.mlflow_tracking_uri)
    client = MlflowClient(stack.mlflow_tracking_uri)
    version = client.get_model_version("support", finished["result"]["model_version"])
    folder = download_artifacts("models:/support/latest", dst_path=str(tmp_path))

    assert version.tags["tuneyard.job_id"] == finished["job_id"]
    assert version.tags["dataset_commit"] == finished["result"]["dataset_commit"]
    files = {path.name for path in Path(folder).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
    assert "model.safetensors" not in files


def test_the_webhook_is_called(finished, receiver):
    body = receiver.wait(finished["job_id"])

    assert body["status"] == "completed"
    assert body["output_path"] == finished["output_path"]
    assert body["tracking_url"] == finished["tracking_url"]
    assert (body["model_name"], body["model_version"]) == ("support", finished["result"]["model_version"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model_name": "nobody/nothing"}, ["nobody/nothing", "models"]),
        ({"dataset_version": "v9.9"}, ["v9.9", "v1.0", "v1.1"]),
        ({"dataset_version": "cookbook@v1.0"}, ["cookbook", "handbook"]),
        ({"template": "llama3"}, ["llama3", "<|eot_id|>"]),
    ],
)
def test_what_is_not_there_fails_the_job_soon_and_says_what_was_looked_up(api, model, wait_for, receiver, body, words):
    posted = api.post("/train", json=SMALL | {"model_name": model, "webhook_url": receiver.url} | body)
    job = wait_for(posted.json()["job_id"])

    assert job["status"] == "failed"
    assert job["end_time"] - job["start_time"] < 60  # some seconds where nothing else runs
    for word in words:
        assert word in job["error"]
    assert "Traceback" not in job["error"]

    def read_errors():
        return [line for line in api.get(f"/train/{job['job_id']}/logs").text.splitlines() if " ERROR " in line]

    wait_until(read_errors, 60)  # lines are sent in batches
    lines = read_errors()
    assert len(lines) == 1, lines
    (line,) = lines
    assert line.endswith(f"{job['error_code']}: {job['error']}".replace("\n", "; "))
    assert receiver.wait(job["job_id"])["error"] == job["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/train", {"template": "qwem"}, 422),
        ("/train", {"learning_rate": -1}, 422),
        ("/train", {"unknown": 1}, 422),
        ("/train", [], 422),
        ("/api/sft/train", {"config": {"base_model": "x"}}, 400),
        ("/api/sft/train", {}, 400),
    ],
)
def test_a_bad_request_makes_no_job(api, path, body, status):
    before = len(api.get("/train").json())
    answer = api.post(path, json=body)

    assert answer.status_code == status
    assert set(answer.json()) == {"detail", "code", "request_id"}
    assert len(api.get("/train").json()) == before


def test_wandb_offline_files_hold_the_metrics(api, model, wait_for):
    body = SMALL | {"model_name": model, "lora_name": "tracked", "tracking_backend": "wandb", "max_steps": 2}
    job = wait_for(api.post("/train", json=body).json()["job_id"])

    assert job["status"] == "completed", job["error"]
    assert job["tracking_url"].startswith("file://")
    (file,) = Path(job["tracking_url"].removeprefix("file://")).glob("*.wandb")
    rows = read_history(file)
    assert [row["step"] for row in rows] == [1, 2, 2, 0]  # the steps, the adapter, the base model
    assert all(row["loss"] > 0 and row["learning_rate"] >= 0 for row in rows[:2])
    assert rows[2]["eval_loss"] != rows[3]["eval_loss"]


def test_a_running_job_is_stopped_and_the_next_one_runs(api, model, wait_for, receiver):
    long = SMALL | {"model_name": model, "max_samples": 200, "num_epochs": 1000, "webhook_url": receiver.url}
    long["save_steps"] = 1_000_000  # what is kept is what the stop saves
    wait_until(lambda: api.get("/queue").json() == NOBODY, 120)
    first = api.post("/train", json=long).json()["job_id"]
    second = api.post("/train", json=long).json()
    third = api.post("/train", json=long).json()
    assert second["message"] == "Training job added to queue at position 1"
    assert third["message"] == "Training job added to queue at position 2"
    assert api.get("/queue").json() == {
        "is_training_running": True,
        "queue_length": 2,
        "queued_jobs": [second["job_id"], third["job_id"]],
    }
    refused = api.post("/train?strategy=reject", json=long)
    assert refused.status_code == 409
    assert refused.json()["detail"] == "A training job is already running. Please try again later."

    cancelled = api.delete(f"/train/{second['job_id']}")
    assert cancelled.status_code == 200
    assert api.get(f"/train/{second['job_id']}").json()["status"] == "cancelled"
    assert receiver.wait(second["job_id"])["status"] == "cancelled"
    assert api.get(f"/train/{third['job_id']}").json()["queue_position"] == 1

    trained = wait_for(first, lambda job: job["progress"] is not None)["progress"]["step"]
    processes = find_processes(first)
    assert processes
    stopped_at = time.monotonic()
    assert api.post(f"/api/sft/jobs/{first}/stop").json() == {"message": f"Job {first} stopped"}
    assert api.get(f"/api/sft/jobs/{first}").json()["status"] == "stopped"
    wait_for(third["job_id"], lambda job: job["attempt"] is not None, seconds=150)
    seconds = time.monotonic() - stopped_at
    assert api.delete(f"/train/{third['job_id']}").status_code == 200
    assert seconds < 100  # some ten seconds where nothing else runs
    wait_until(lambda: find_processes(first) == [], 30)
    assert receiver.wait(first)["status"] == "cancelled"
    (kept,) = api.get(f"/train/{first}/checkpoints").json()["checkpoints"]
    assert (kept["complete"], kept["step"] >= trained) == (True, True)
    assert (Path(kept["path"]) / "adapter_model.safetensors").is_file()
    assert api.delete(f"/train/{first}").status_code == 400


def test_unknown_jobs(api):
    for unknown in ("550e8400-e29b-41d4-a716-446655440000", "nonsense"):
        assert api.get(f"/train/{unknown}").status_code == 404
        assert api.delete(f"/train/{unknown}").status_code == 404
        assert api.get(f"/api/sft/jobs/{unknown}").json()["detail"] == f"Job {unknown} not found"
        assert api.post(f"/api/sft/jobs/{unknown}/stop").status_code == 404
