"""The client's distribution where nothing else of Tuneyard is installed."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from jobs.project import PROJECT_ROOT
from tests.client.scripted_service import Scripted

OURS = ("app", "api", "jobs", "flows", "tasks", "sft")
BLOCKED = (*OURS, "torch", "transformers", "prefect", "mlflow", "fastapi", "sqlalchemy", "yaml", "dvc")
ALONE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Blocked())
from pydantic import BaseModel
import tuneyard_client, tuneyard_wire
from tuneyard_client import ClientError, Tuneyard

for module in (tuneyard_client, tuneyard_wire):
    assert module.__file__.startswith(sys.argv[2]), module

class Config(BaseModel):
    base_model: str

with Tuneyard(sys.argv[1]) as client:
    print(client.submit({{"model_name": "m"}}).job_id, client.sft(Config(base_model="m")).job_id)
    try:
        client.job("2")
    except ClientError as error:
        print(error.code)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client's wheel in it, built from a copy of its sources."""
    base = tmp_path_factory.mktemp("client")
    for name in ("client", "tuneyard_client", "tuneyard_wire"):
        shutil.copytree(PROJECT_ROOT / name, base / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = ["-q", "--no-index", "--no-deps", "--no-build-isolation"]
    for command in ("wheel", "-w", base / "dist"), ("install", "--target", base / "site"):
        what = base / "client" if command[0] == "wheel" else next((base / "dist").iterdir())
        done = subprocess.run([*pip, *command, *quiet, what], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return base / "site"


def test_it_needs_httpx_and_pydantic_alone(service, installed, tmp_path):
    started = Scripted(body=json.dumps({"job_id": "1", "status": "started", "message": "Training job started"}))
    missing = Scripted(404, json.dumps({"detail": "Job 2 not found", "code": "job_not_found", "request_id": "r"}))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, service(started, started, missing).url, str(installed)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("1 1\njob_not_found\n", "")


def test_the_full_package_has_the_client_too_and_asks_no_index_for_it():
    full, client = (
        tomllib.loads((PROJECT_ROOT / place).read_text(encoding="utf-8"))
        for place in ("pyproject.toml", "client/pyproject.toml")
    )
    found = find_packages(str(PROJECT_ROOT), include=full["tool"]["setuptools"]["packages"]["find"]["include"])
    assert {*client["tool"]["setuptools"]["packages"]} <= {*found}
    assert client["project"]["version"] == full["project"]["version"]
    assert not any("tuneyard" in needed for needed in full["project"]["dependencies"])
    assert client["project"]["dependencies"] == ["httpx", "pydantic"]
