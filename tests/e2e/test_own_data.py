"""From a file of one's own to an adapter that names its exact data: the command, a real service, a real job."""

import json
import os
import subprocess
import sys

import httpx
import pytest

from jobs.own_data.registry import OwnRegistry
from tuneyard_wire.dataset_reference import DatasetReference

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


def command(api: httpx.Client, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `tuneyard` against the service."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env=os.environ | {"TUNEYARD_URL": str(api.base_url)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_a_file_is_trained_on_as_the_version_that_it_became(api, stack, model, wait_for, tmp_path):
    file = tmp_path / "greetings.jsonl"
    rows = ({"instruction": f"Greet guest {number}.", "output": f"Welcome, guest {number}!"} for number in range(12))
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    small = ["--epochs", "1", "--batch-size", "4", "--set", "gradient_accumulation_steps=1"]
    arguments = ["--model", model, "--dataset", str(file), "--template", "chatml", *small]

    submitted = command(api, "submit", *arguments, "--name", "greeter")
    assert submitted.returncode == 0, submitted.stderr
    assert f"{file} is greetings@v1" in submitted.stderr
    assert "12 rows, format alpaca" in submitted.stderr
    job = wait_for(submitted.stdout.strip())
    assert (job["status"], job["error"], job["config"]["dataset_version"]) == ("completed", None, "greetings@v1")

    version = OwnRegistry(stack.home).find(DatasetReference("greetings", "v1"))
    recorded = httpx.get(
        f"{stack.mlflow_tracking_uri}/api/2.0/mlflow/model-versions/get",
        params={"name": "greeter", "version": job["result"]["model_version"]},
        timeout=60,
    ).json()["model_version"]["tags"]
    tags = {tag["key"]: tag["value"] for tag in recorded}
    assert (tags["dataset"], tags["dataset_revision"]) == ("greetings", "v1")
    assert (tags["dataset_commit"], tags["dataset_md5"]) == (version.commit, version.md5)

    again = command(api, "plan", *arguments, "--json")
    assert json.loads(again.stdout)["dataset"]["revision"] == "v1", again.stderr
    assert command(api, "data", "delete", "greetings").stdout == "Deleted greetings@v1\n"
