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
from tuneyard_cli.machine import Machine, this_machine, use_machine
from tuneyard_cli.service import connected
from tuneyard_client.errors import ServiceUnreachable
from tuneyard_wire.configs import SavedConfig
from tuneyard_wire.jobs import TrainJob

PACKAGES = ("tuneyard_cli", "tuneyard_client", "tuneyard_wire")
OURS = ("app", "api", "cli", "jobs", "flows", "tasks", "sft")
HEAVY = ("torch", "transformers", "prefect", "mlflow", "fastapi", "sqlalchemy", "dvc", "pydantic_settings")
OF_THE_COMMAND = ("yaml", "typer", "rich")  # which the client in Python does without
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Blocked())
"""
ALONE = f"""{BLOCK.format((*OURS, *HEAVY, *OF_THE_COMMAND))}
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
COMMAND = f"""{BLOCK.format((*OURS, *HEAVY))}
import tuneyard_cli.__main__ as command

assert command.__file__.startswith(sys.argv.pop(1)), command
command.make_app("Jobs of a service.")()
"""
JOB = TrainJob.example() | {"job_id": "17", "status": "completed", "output_path": "/out"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client's wheel in it, built from a copy of its sources."""
    base = tmp_path_factory.mktemp("client")
    for name in ("client", *PACKAGES):
        shutil.copytree(PROJECT_ROOT / name, base / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = ["-q", "--no-index", "--no-deps", "--no-build-isolation"]
    for command in ("wheel", "-w", base / "dist"), ("install", "--target", base / "site"):
        what = base / "client" if command[0] == "wheel" else next((base / "dist").iterdir())
        done = subprocess.run([*pip, *command, *quiet, what], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return base / "site"


def test_its_wheel_carries_the_license(installed):
    (license_file,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert license_file.read_text() == (PROJECT_ROOT / "LICENSE").read_text()


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


@pytest.fixture
def command(installed, tmp_path):
    """Runs the command of the client where nothing else of Tuneyard can be imported."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNEYARD_")}
        return subprocess.run(
            [sys.executable, "-c", COMMAND, str(installed), *arguments],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": str(installed), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.mark.parametrize(
    ("arguments", "answer", "printed"),
    [
        (["submit", "--model", "m", "--dataset", "v1"], {"job_id": "17", "status": "started", "message": "ok"}, "17\n"),
        (["submit", "--file", "job.yaml"], {"job_id": "17", "status": "started", "message": "ok"}, "17\n"),
        (["watch", "17"], JOB, "completed: /out\n"),
        (["list"], [JOB], "17 "),
        (["show", "17"], JOB, "job_id: '17'\n"),
        (["cancel", "17"], {"status": "cancelled", "message": "Job 17 is cancelled"}, "Job 17 is cancelled\n"),
        (["configs", "list"], [SavedConfig.example()], SavedConfig.example()["config_id"]),
    ],
)
def test_the_command_of_the_client_needs_nothing_of_the_service(service, command, tmp_path, arguments, answer, printed):
    (tmp_path / "job.yaml").write_text("base_model: m\ndataset_name: a@v1\nrun_name: mine\n", encoding="utf-8")
    done = command(*arguments, TUNEYARD_URL=service(Scripted(body=json.dumps(answer))).url)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["up"], 2, "`tuneyard up` runs on the service's machine; install the full package `tuneyard`"),
        (["deploy"], 2, "`tuneyard deploy` runs on the service's machine"),
        (["keys", "list"], 2, "`tuneyard keys` runs on the service's machine"),
        (["plan", "--here", "--model", "m", "--dataset", "v1"], 2, "--here plans on this machine: install the full"),
        (["submit", "--set", "base_model=m", "--dataset", "v1"], 2, "give NAME@v1"),
    ],
)
def test_what_only_the_full_package_can_do_is_told_with_the_remedy(command, arguments, code, told):
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_service_the_option_and_the_package_are_named():
    class Nowhere(Machine):
        def url(self) -> str:
            return "http://127.0.0.1:9"

    before = this_machine()
    use_machine(Nowhere())
    try:
        with (
            pytest.raises(ServiceUnreachable, match="Name the service with --url or TUNEYARD_URL"),
            connected(None) as it,
        ):
            it.queue()
    finally:
        use_machine(before)


def test_a_wrong_key_is_told_with_the_variable_that_holds_it(service, command):
    refused = Scripted(401, json.dumps({"detail": "API key is not valid", "code": "unauthorized", "request_id": "r"}))
    done = command("list", TUNEYARD_URL=service(refused).url, TUNEYARD_API_KEY="wrong")
    assert (done.returncode, done.stderr) == (
        3,
        "tuneyard: API key is not valid; commands read it from TUNEYARD_API_KEY\n",
    )


def test_type_checkers_read_the_types_of_both_wheels(installed):
    full = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in PACKAGES:
        assert (installed / package / "py.typed").is_file()
        assert full["tool"]["setuptools"]["package-data"][package] == ["py.typed"]


def test_the_full_package_has_the_client_too_and_asks_no_index_for_it():
    full, client = (
        tomllib.loads((PROJECT_ROOT / place).read_text(encoding="utf-8"))
        for place in ("pyproject.toml", "client/pyproject.toml")
    )
    found = find_packages(str(PROJECT_ROOT), include=full["tool"]["setuptools"]["packages"]["find"]["include"])
    assert {*client["tool"]["setuptools"]["packages"]} <= {*found}
    assert client["project"]["version"] == full["project"]["version"]
    assert not any("tuneyard" in needed for needed in full["project"]["dependencies"])
    assert client["project"]["dependencies"] == ["httpx", "pydantic", "pyyaml", "rich", "typer"]
    (loaded,) = full["project"]["entry-points"]["tuneyard.commands"].values()
    assert full["project"]["scripts"] == {"tuneyard": loaded}  # the same commands by either distribution's script
