"""`tuneyard doctor`: what it finds, and what it says to do."""

import json
import socket
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import doctor
from cli.diagnosis import Level
from cli.doctor import GIB, check_answers, check_dtype
from jobs.shared_store import SharedStore
from jobs.stack.readiness import PartCheck, check_parts
from sft.models.dtype_record import DtypeRecord
from tests.conftest import free_port, stack_settings, wait_until
from tests.s3_server import ENVIRONMENT

TORCH_CPU = json.dumps(["2.13.0+cpu", None, False])
TORCH_CUDA = json.dumps(["2.13.0+cu130", "13.0", True])
TORCH_BLIND = json.dumps(["2.13.0+cu130", "13.0", False])
H100 = "NVIDIA H100, 580.1, 81559 MiB\n"


def run(settings):
    app = typer.Typer()
    app.command()(doctor.doctor)
    variables = {
        "TUNEYARD_HOME": str(settings.home),
        "TUNEYARD_API_PORT": str(settings.api_port),
        "TUNEYARD_PREFECT_PORT": str(settings.prefect_port),
        "TUNEYARD_MLFLOW_PORT": str(settings.mlflow_port),
    }
    return CliRunner().invoke(app, [], env=variables)


def topics(output):
    """The topics that were looked at, in order."""
    return list(
        dict.fromkeys(line.split()[1] for line in output.splitlines() if line[:5].strip() in ("ok", "warn", "FAIL"))
    )


def test_a_machine_without_a_stack(tmp_path):
    result = run(stack_settings(tmp_path / "home").model_copy(update={"api_port": free_port()}))

    assert result.exit_code == 0, result.output
    assert topics(result.output) == [
        "python",
        "packages",
        "folder",
        "rights",
        "disk",
        "memory",
        "gpu",
        "torch",
        "dtype",
        "answers",
        "ports",
        "stack",
    ]
    assert "is not running; it starts on first use" in result.output
    assert result.output.endswith("Jobs can run on this machine.\n")
    assert not (tmp_path / "home").exists()


def test_what_answers_is_said(tmp_path):
    settings = stack_settings(tmp_path)
    assert check_answers(settings, None, has_gpu=True).detail == "by transformers"
    assert check_answers(settings, "/v/vllm", has_gpu=True).detail == "by vLLM (/v/vllm)"
    assert "/v/vllm is used with a GPU" in check_answers(settings, "/v/vllm", has_gpu=False).detail
    missing = settings.model_copy(update={"vllm": Path("/nowhere")})
    assert check_answers(missing, None, has_gpu=True).level is Level.WARN
    chosen = check_answers(missing.model_copy(update={"generation_engine": "vllm"}), None, has_gpu=True)
    assert chosen.level is Level.FAIL
    assert chosen.remedy == "set TUNEYARD_VLLM to it"


@pytest.mark.stack
def test_a_stack_that_runs_is_asked_whether_it_answers(stack):
    wait_until(lambda: all(check.ok for check in check_parts(stack).values()), 90)  # a test before may have ended one
    result = run(stack.model_copy(update={"api_port": free_port()}))

    assert result.exit_code == 0, result.output
    for part in ("database accepts connections", "prefect responds", "mlflow responds", "worker 1 online"):
        assert f"ok    stack     {part}" in result.output


def test_a_taken_port_fails_and_names_the_setting(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run(stack_settings(tmp_path).model_copy(update={"prefect_port": port, "api_port": free_port()}))

    assert result.exit_code == 1
    assert f"FAIL  ports     Prefect needs port {port}, which is taken by pid" in result.output
    assert "-> stop that process or set TUNEYARD_PREFECT_PORT to a free port" in result.output
    assert result.output.endswith("1 problem(s) found.\n")


@pytest.mark.parametrize(
    ("gpus", "torch", "levels", "words"),
    [
        (None, TORCH_CPU, [Level.OK, Level.OK], "jobs train on the CPU"),
        (H100, TORCH_CUDA, [Level.OK, Level.OK], "2.13.0+cu130 uses CUDA 13.0"),
        (H100, TORCH_CPU, [Level.OK, Level.FAIL], "install the CUDA build"),
        (H100, TORCH_BLIND, [Level.OK, Level.FAIL], "update the driver"),
        (H100, None, [Level.FAIL], "can't be imported"),
    ],
)
def test_gpu_driver_and_torch_must_fit(gpus, torch, levels, words):
    found = list(doctor.check_gpu(gpus, torch))

    assert [finding.level for finding in found] == levels
    assert any(words in f"{finding.detail} {finding.remedy}" for finding in found)


@pytest.mark.parametrize(("free", "level"), [(1, Level.FAIL), (10, Level.WARN), (100, Level.OK)])
def test_disk(free, level):
    found = doctor.check_disk(Path("/srv/x"), free * GIB)
    assert (found.level, found.detail) == (level, f"{free:.1f} GiB free for /srv/x")


@pytest.mark.parametrize(("available", "level"), [(0.5, Level.FAIL), (2, Level.WARN), (16, Level.OK)])
def test_memory(available, level):
    assert doctor.check_memory(int(available * GIB)).level == level


def test_python():
    assert doctor.check_python("3.11.7", ">=3.11,<3.13").level is Level.OK
    assert doctor.check_python("3.13.0", ">=3.11,<3.13").level is Level.FAIL


def test_packages_are_compared_with_the_constraints(tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# tested\ntorch==2.13.0\nfastapi==0.150.0  # why\nnobody==1\n")
    installed = {"torch": "2.13.0+cu130", "fastapi": "0.151.0"}
    (missing, other) = doctor.check_packages(constraints, lambda name: installed.get(name))

    assert (other.level, other.detail) == (Level.WARN, "untested versions: fastapi 0.151.0 instead of 0.150.0")
    assert missing.level is Level.FAIL
    assert "transformers" in missing.detail
    assert "nobody" not in missing.detail
    assert missing.remedy == "pip install -c constraints.txt -e ."


def test_a_state_folder_open_to_all_or_a_file_in_its_way_fails(tmp_path):
    (found,) = doctor.check_folder(tmp_path)
    assert found.level is Level.OK
    tmp_path.chmod(0o777)
    (found,) = doctor.check_folder(tmp_path)
    assert (found.level, found.remedy) == (Level.FAIL, f"chmod o-w {tmp_path}")
    (tmp_path / "file").touch()
    (found,) = doctor.check_folder(tmp_path / "file" / "home")
    assert found.level is Level.FAIL
    assert "set TUNEYARD_HOME to a writable folder" in found.remedy


def test_a_part_that_does_not_answer_fails():
    (found,) = doctor.check_stack({"mlflow": PartCheck(False, "does not respond (no connection)")})
    assert (found.level, found.detail) == (Level.FAIL, "mlflow does not respond (no connection)")


def test_a_store_is_tried_and_says_what_is_wrong(tmp_path, monkeypatch):
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    assert list(doctor.check_store(None)) == []
    found = [
        *doctor.check_store(SharedStore(tmp_path.as_uri())),
        *doctor.check_store(SharedStore("gs://bucket/x")),
        *doctor.check_store(SharedStore("s3://bucket/x")),
    ]
    assert [finding.level for finding in found] == [Level.OK, Level.FAIL, Level.WARN]
    assert found[0].detail == f"{tmp_path.as_uri()} takes files"
    assert "install its package" in found[1].detail


def test_the_dtype_of_auto_is_shown():
    record = DtypeRecord("bf16", 0.004, 0.001, "2026-01-02T03:04:05+00:00")
    told = [check_dtype(*facts).detail for facts in ((None, None), (None, record), ("none", record))]
    assert "not measured on this CPU yet" in told[0]
    assert "auto is bf16 on this CPU" in told[1]
    assert "4.0 ms in fp32, 1.0 ms in bf16" in told[1]
    assert told[2] == "mixed_precision auto is none, set by TUNEYARD_DTYPE"


def test_proxies_are_told_of_where_there_are_any():
    assert list(doctor.check_proxies({"NO_PROXY": "localhost"})) == []
    (ok,) = doctor.check_proxies({"HTTP_PROXY": "http://proxy:3128"})
    assert ok.level is Level.OK
    (finding,) = doctor.check_proxies({"ALL_PROXY": "socks5://proxy:1"})
    assert finding.level is Level.WARN
    assert "ALL_PROXY is ignored" in finding.detail
