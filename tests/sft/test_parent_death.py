"""The kernel's signal at a parent's death, and how a parent is noticed that died before."""

import signal
import subprocess
import sys

import psutil
import pytest

from tests.conftest import wait_until

PARENT = """
import functools, os, signal, subprocess, sys, time
from sft.parent_death import request_parent_death_signal
request = functools.partial(request_parent_death_signal, int(sys.argv[1]), os.getpid())
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=request)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_gets_the_signal_when_the_parent_that_started_it_is_killed(number):
    command = [sys.executable, "-c", PARENT, str(int(number))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30)


def test_a_parent_that_died_before_is_noticed():
    code = "import os, sys; from sft.parent_death import request_parent_death_signal as request;"
    code += "print(request(15, int(sys.argv[1])), request(15, os.getppid()))"
    done = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == ["False", "True"]
