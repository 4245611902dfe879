"""No process of a stack is left when the tests are killed."""

import os
import signal
import subprocess
import sys

from jobs.project import PROJECT_ROOT
from jobs.stack.process_manager import MARK, stack_processes
from tests.conftest import wait_until

OWNER = """
import sys, time
from pathlib import Path
from jobs.settings import Settings
from tests.stack_guard import stopping_stack

with stopping_stack(Settings(home=Path(sys.argv[1]))):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_stack_ends_with_the_tests_even_when_they_are_killed(tmp_path):
    part = subprocess.Popen(["sleep", "600"], env=os.environ | {MARK: str(tmp_path)}, start_new_session=True)
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    try:
        with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, start_new_session=True) as owner:
            assert owner.stdout.readline() == b"ready\n"
            assert [process.pid for process in stack_processes(tmp_path)] == [part.pid]
            os.killpg(owner.pid, signal.SIGKILL)
        wait_until(lambda: part.poll() is not None, 60)
    finally:
        part.kill()
        part.wait()
