"""The planner loads its libraries without starting CUDA, which no process that is forked from it could use then."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wait_until

PROJECT = Path(__file__).parents[2]
STAND_IN = "import torch\nif torch.cuda.is_available():\n    torch.cuda._lazy_init()\n"
# Counts GPUs as libraries do. Without the variable torch asks CUDA itself, which a fork can't use afterwards.
COUNTS = """
import os, torch
HOW = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
HAS_GPU = torch.cuda.is_available()
"""
COUNT = """
import importlib.util, os, sys, torch
calls = []
torch.cuda.is_available = lambda: True
torch.cuda._lazy_init = lambda: calls.append(1)
import tasks.plan
tasks.plan.PRELOADED += ("counts_gpus",)
tasks.plan.preload()
from peft.import_utils import is_bnb_available
is_found = importlib.util.find_spec("bitsandbytes") is not None
print(len(calls), "bitsandbytes" in sys.modules, is_found, is_bnb_available())
print(sys.modules["counts_gpus"].HOW, "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ)
import bitsandbytes
print(len(calls))
"""
# What torch does once CUDA was initialized, whoever did it: its handler marks each fork.
POISONS = """
import os, torch
def mark():
    torch.cuda._is_in_bad_fork = lambda: True
os.register_at_fork(after_in_child=mark)
"""
SERVE = """
import gc, json, sys, tasks.plan
tasks.plan.PRELOADED = tuple(sys.argv[2:])
tasks.plan.answer = lambda line: json.dumps({"made in": "a fork", "shares libraries": gc.get_freeze_count() > 50_000})
tasks.plan.serve(sys.argv[1])
"""


@pytest.fixture
def environment(tmp_path):
    """An environment in which Python finds three stand-ins for libraries."""
    for name, content in (("bitsandbytes", STAND_IN), ("counts_gpus", COUNTS), ("poisons", POISONS)):
        (tmp_path / f"{name}.py").write_text(content)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])}


def test_what_starts_cuda_at_import_is_not_loaded(environment):
    environment.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["0 False True True", "1 False", "1"]


@pytest.mark.parametrize("library", ["counts_gpus", "poisons"])
def test_a_library_that_starts_cuda_keeps_nobody_from_planning(environment, tmp_path, library):
    """Plans are made in forks, and in processes of their own where a fork could not use CUDA."""
    path = tmp_path / "planner.sock"
    command = [sys.executable, "-c", SERVE, str(path), library]
    planner = subprocess.Popen(command, env=environment, cwd=PROJECT, stdin=subprocess.PIPE)
    try:
        wait_until(path.exists, 150)
        asked = {"config": {"base_model": ""}, "settings": {}}
        answer = ask(path, asked)
    finally:
        planner.stdin.close()
        assert planner.wait(120) == 0
    if library == "poisons":
        assert answer["error"]["code"] == "invalid_config"
    else:
        assert answer == {"made in": "a fork", "shares libraries": True}  # no collection copies their memory
    assert not list(tmp_path.glob("plan-*"))


def ask(path, request):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile() as lines:
            return json.loads(lines.read())
