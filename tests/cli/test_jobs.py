"""`tuneyard submit`, `list`, `show` and their like as a user meets them."""

import json
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

import cli.__main__ as cli
from jobs.settings import PROJECT_ROOT
from tests.client.scripted_service import Scripted, ScriptedService
from tuneyard_wire.configs import SavedConfig
from tuneyard_wire.jobs import Result

ENDED_WELL = {
    "job_id": "17",
    "status": "completed",
    "config": {"model_name": "m/base", "dataset_version": "v1.1", "lora_name": "mine"},
    "start_time": 1712334054.5,
    "phase": "done",
    "output_path": "/out/adapter",
    "progress": {"step": 6, "total_steps": 6, "percent": 100.0, "loss": 0.5, "tokens_per_second": 9, "eta_seconds": 0},
}
STARTED = {"job_id": "17", "status": "started", "message": "Training job started"}


@pytest.fixture
def run(monkeypatch):
    """Runs a command against a service that gives these answers; the result, and what the service was asked."""
    monkeypatch.delenv("TUNEYARD_API_KEY", raising=False)

    def run(arguments, *answers, **environment):
        service = ScriptedService(*(a if isinstance(a, Scripted) else Scripted(body=json.dumps(a)) for a in answers))
        try:
            result = CliRunner().invoke(cli.main, arguments, env={"TUNEYARD_URL": service.url, **environment})
        finally:
            service.close()
        return result, service.received

    return run


def test_help_names_every_command_and_loads_nothing_that_takes_time():
    script = """
import sys
from typer.testing import CliRunner
import cli.__main__ as cli
print(CliRunner().invoke(cli.main, ["--help"]).output)
print("loaded", [name for name in ("httpx", "pydantic", "prefect", "sqlalchemy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    jobs = ("submit", "list", "show", "watch", "logs", "download", "cancel", "configs")
    service = ("up", "down", "status", "serve", "doctor", "keys")
    assert [name for name in (*jobs, *service) if f" {name} " not in done.stdout] == []
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_submit_prints_the_id_alone(run):
    arguments = [
        "submit",
        "--model",
        "m",
        "--dataset",
        "v1.1",
        "--epochs",
        "2",
        "--metadata",
        "team=a=b",
        "--set",
        "lora_r=4",
    ]
    result, (request,) = run(arguments, STARTED, TUNEYARD_API_KEY="secret")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "17\n", "Training job started\n")
    assert (request.method, request.path) == ("POST", "/train?strict=true")
    assert request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.body) == {
        "model_name": "m", "dataset_version": "v1.1", "num_epochs": 2.0, "metadata": {"team": "a=b"}, "lora_r": 4
    }  # fmt: skip


def test_submit_reads_a_file_and_flags_win_over_it(run, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("model_name: m\ndataset_version: v1\ntemplate: chatml\nnum_epochs: 1\n")
    result, (request,) = run(["submit", "-f", str(file), "--template", "qwen", "--reject", "--json"], STARTED)

    assert json.loads(result.stdout) == STARTED | {"warnings": []}
    assert request.path == "/train?strategy=reject&strict=true"
    assert json.loads(request.body) == {
        "model_name": "m", "dataset_version": "v1", "template": "qwen", "num_epochs": 1
    }  # fmt: skip


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("cancelled", 1)])
def test_watching_ends_with_the_job_and_says_how_it_ended(run, status, code):
    job = ENDED_WELL | {"status": status, "error": "why" if status == "failed" else None}
    result, _ = run(["watch", "17"], job)

    assert result.exit_code == code
    assert "• done" in result.stdout
    assert "step 6 of 6  loss 0.500  9 tokens/s" in result.stdout
    ends = {"completed": "completed: /out/adapter", "failed": "job 17 failed: why", "cancelled": "job 17 cancelled"}
    assert ends[status] in result.output


def test_the_serving_check_of_an_ended_job_is_a_line(run):
    job = ENDED_WELL | {"result": Result.example()}
    counts = "4 of 4 prompts have the token ids trained on; 3 of 3 answers end by themselves"
    line = f"passed; {counts}; loss 0.4406 beside 0.4406 in training"
    assert run(["watch", "17"], job)[0].stdout.splitlines()[-2:] == [
        f"serving check: {line}", "completed: /out/adapter"
    ]  # fmt: skip
    assert yaml.safe_load(run(["show", "17"], job)[0].stdout)["result"]["serving_check"] == line
    assert json.loads(run(["show", "17", "--json"], job)[0].stdout)["result"]["serving_check"]["prompts"] == 4
    job["result"]["serving_check"] = {"status": "skipped", "reason": "the base model is quantized"}
    assert "serving check: skipped; the base model is quantized\n" in run(["watch", "17"], job)[0].stdout


def test_submit_and_watch(run):
    result, received = run(["submit", "--model", "m", "--dataset", "v1.1", "--watch", "--json"], STARTED, ENDED_WELL)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["output_path"] == "/out/adapter"
    assert [request.path for request in received] == ["/train?strict=true", "/train/17"]


def test_list_is_a_table_of_what_was_asked_for(run):
    result, (request,) = run(["list", "--status", "completed", "--adapter", "mine", "-n", "5"], [ENDED_WELL])
    lines = result.stdout.splitlines()

    assert request.path == "/train?status=completed&adapter=mine&limit=5"
    assert lines[0].split() == ["ID", "STATUS", "MODEL", "DATASET", "ADAPTER", "PROGRESS", "STARTED"]
    assert lines[1].split()[:7] == ["17", "completed", "m/base", "v1.1", "mine", "100", "%"]
    assert json.loads(run(["list", "--json"], [ENDED_WELL])[0].stdout)[0]["job_id"] == "17"


def test_show_is_yaml_or_json(run):
    assert yaml.safe_load(run(["show", "17"], ENDED_WELL)[0].stdout)["config"] == ENDED_WELL["config"]
    assert json.loads(run(["show", "17", "--json"], ENDED_WELL)[0].stdout)["start_time"] == 1712334054.5


def test_logs(run):
    line = {"timestamp": "2026-01-02T03:04:05+00:00", "level": "INFO", "logger": "tasks", "message": "hello"}
    result, (request,) = run(["logs", "17", "-f", "-n", "2"], line)
    assert result.stdout.split("  ", 1)[1] == "INFO     hello\n"
    assert request.path == "/train/17/logs?format=json&follow=true&tail=2"


def test_cancel(run):
    result, (request,) = run(["cancel", "17"], {"status": "cancelled", "message": "Training job 17 cancelled"})
    assert (request.method, result.stdout) == ("DELETE", "Training job 17 cancelled\n")


def test_configurations(run, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("lora_r: 4\n")
    config_id = "550e8400-e29b-41d4-a716-446655440000"
    saved = SavedConfig.example() | {"config_id": config_id, "name": "mine", "config": {"lora_r": 4}, "version": 2}

    result, (request,) = run(["configs", "save", "mine", str(file)], saved)
    assert (result.stdout, json.loads(request.body)) == (f"{config_id}\n", {"name": "mine", "config": {"lora_r": 4}})
    assert run(["configs", "list"], [saved])[0].stdout == f"{config_id}  mine\n"
    assert yaml.safe_load(run(["configs", "show", config_id], saved)[0].stdout) == saved
    assert yaml.safe_load(run(["configs", "show", "mine"], [saved], saved)[0].stdout) == saved
    result, received = run(["configs", "update", config_id, str(file)], saved)
    assert (result.stdout, received[-1].method) == (f"{config_id} is now at version 2\n", "PUT")
    assert json.loads(received[-1].body)["name"] == "mine"
    result, received = run(["configs", "delete", "mine"], [saved], {})
    assert (result.stdout, received[-1].path) == (f"Deleted {config_id}\n", f"/api/sft/configs/{config_id}")
    result, _ = run(["configs", "delete", config_id, "--json"], {})
    assert json.loads(result.stdout) == {"config_id": config_id, "deleted": True}
