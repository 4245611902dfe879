"""The memory that jobs hold is that of the processes which carry a job's mark."""

import os
import subprocess
import sys

from jobs.engine.processes import VARIABLE, measure_held_memory

HOLD = "held = bytearray(150_000_000)\nprint('holding', flush=True)\ninput()"


def test_what_a_process_of_a_job_holds_counts_until_it_ends():
    command = [sys.executable, "-c", HOLD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, VARIABLE: "a-job"}, **pipes) as job:
        assert job.stdout.readline() == "holding\n"
        held = measure_held_memory()
        job.communicate("\n")
    assert held > 150_000_000
    with subprocess.Popen(
        command, env={key: os.environ[key] for key in os.environ if key != VARIABLE}, **pipes
    ) as other:
        assert other.stdout.readline() == "holding\n"
        assert measure_held_memory() < held
        other.communicate("\n")
