"""The processes of a vLLM server, which stand-ins take the place of: they start, end and fail as vLLM's do."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from sft.generation.vllm_limits import VllmUnfit
from tasks.vllm_server import VllmServer, build_command, make_environment
from tests.conftest import is_gone, wait_until

# Starts a child that ignores SIGTERM, as an engine that is busy does.
PARENT = """
import subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(600)
"""
OWNER = """
import os, sys, time
from pathlib import Path
from tasks.vllm_server import VllmServer
server = VllmServer(Path(sys.argv[1], "vllm.sock"), Path(sys.argv[1], "vllm.log"))
server.start([sys.executable, "-c", sys.argv[2]], dict(os.environ))
time.sleep(600)
"""


def make_server(folder: Path) -> VllmServer:
    return VllmServer(folder / "vllm.sock", folder / "logs" / "vllm.log")


def list_below(pid: int, count: int) -> list[psutil.Process]:
    """The processes below this one, once there are so many."""
    wait_until(lambda: len(psutil.Process(pid).children(recursive=True)) >= count, 60)
    return psutil.Process(pid).children(recursive=True)


def test_the_end_of_a_server_is_that_of_all_its_processes(tmp_path):
    server = make_server(tmp_path)
    server.start([sys.executable, "-c", PARENT], dict(os.environ))
    assert server._process is not None
    left = [psutil.Process(server._process.pid), *list_below(server._process.pid, 2)]
    assert not server.has_ended()
    server.end()
    wait_until(lambda: all(map(is_gone, left)), 30)
    assert server.has_ended()
    server.kill()  # without effect


def test_the_child_of_a_server_that_ended_by_itself_is_ended_too(tmp_path):
    server = make_server(tmp_path)
    server.start([sys.executable, "-c", PARENT], dict(os.environ))
    assert server._process is not None
    command, child = sorted(list_below(server._process.pid, 2), key=lambda one: one.create_time())
    command.kill()
    wait_until(lambda: is_gone(child), 30)
    wait_until(server.has_ended, 30)
    server.end()


def test_the_kill_of_the_process_that_started_a_server_is_its_end(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path), PARENT])
    left = list_below(owner.pid, 3)
    owner.kill()
    owner.wait()
    wait_until(lambda: all(map(is_gone, left)), 30)


def test_a_keeper_that_is_killed_takes_the_command_along_and_the_rest_ends_with_the_server(tmp_path):
    server = make_server(tmp_path)
    server.start([sys.executable, "-c", PARENT], dict(os.environ))
    assert server._process is not None
    left = list_below(server._process.pid, 2)
    os.kill(server._process.pid, 9)
    wait_until(lambda: is_gone(min(left, key=lambda one: one.create_time())), 30)
    wait_until(server.has_ended, 30)
    server.end()
    wait_until(lambda: all(map(is_gone, left)), 30)


def test_a_server_that_does_not_start_says_why(tmp_path):
    server = make_server(tmp_path)
    script = """
    import sys
    print("(APIServer pid=1) WARNING 11-30 10:56:58 ValueError: no tokenizer")
    print("(EngineCore pid=2) ERROR 11-30 10:56:58 ValueError: Zamba has no LoRA")
    print("(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.")
    sys.exit(1)
    """
    server.start([sys.executable, "-c", textwrap.dedent(script)], dict(os.environ))
    with pytest.raises(VllmUnfit, match=r"does not start: ValueError: Zamba has no LoRA$"):
        server.wait_until_ready(lambda: False, 60)
    server.end()


def test_a_server_is_not_waited_for_once_the_process_is_to_end(tmp_path):
    server = make_server(tmp_path)
    server.start([sys.executable, "-c", PARENT], dict(os.environ))
    assert not server.wait_until_ready(lambda: True, 60)
    with pytest.raises(VllmUnfit, match="within 0 s"):
        server.wait_until_ready(lambda: False, 0)
    server.end()


def test_the_command_reads_no_code_and_listens_on_no_port():
    command = build_command("/v/bin/vllm", Path("/models/a b"), Path("/run/x/vllm.sock"), "bfloat16", 128)
    assert command[:3] == ["/v/bin/vllm", "serve", "/models/a b"]
    assert {"--uds=/run/x/vllm.sock", "--dtype=bfloat16", "--max-lora-rank=128", "--load-format=safetensors"} <= {
        *command
    }
    assert not any("trust-remote-code" in part or "port" in part or "host" in part for part in command)


def test_the_environment_has_no_secrets_and_nothing_of_ours():
    given = {
        "HOME": "/h",
        "PATH": "/bin",
        "TUNEYARD_DATABASE_URL": "x",
        "MLFLOW_TRACKING_TOKEN": "x",
        "AWS_SECRET": "x",
    }
    given |= {"PYTHONPATH": "/ours", "VIRTUAL_ENV": "/ours", "HF_TOKEN": "x"}
    found = make_environment(given, "/v/bin/vllm", Path("/run/x"), Path("/home/cache"))
    assert "x" not in found.values()
    assert "/ours" not in found.values()
    assert found["PATH"] == "/v/bin:/bin"
    assert found["HOME"] == "/h"
    assert found["HF_HUB_OFFLINE"] == "1"
