"""The process that answers keeps out of the way of jobs: a real process with a job's variable stands for one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

import psutil
import pytest

from jobs.engine.processes import VARIABLE
from jobs.errors import GenerationBusy
from tasks import generation_room
from tasks.generation_room import BESIDE_SHARE, Breaks, check_room, list_jobs
from tests.conftest import wait_until

WATCHING = """
import os, time
from tasks.generation_room import JobWatch
JobWatch(lambda: True, lambda: os._exit(7))
time.sleep(600)
"""


@pytest.fixture
def job() -> Iterator[subprocess.Popen[bytes]]:
    """A process that belongs to a job."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = subprocess.Popen(command, env=os.environ | {VARIABLE: str(uuid4())})
    wait_until(lambda: process.pid in {one.pid for one in list_jobs()}, 60)
    yield process
    process.kill()
    process.wait()


def test_beside_a_job_it_computes_a_small_share_of_the_time():
    breaks = Breaks(lambda: True)
    began, worked = time.monotonic(), 0.0
    for _ in range(4):
        start = time.monotonic()
        while time.monotonic() - start < 0.02:
            pass
        worked += time.monotonic() - start
        breaks.take()
    assert worked <= BESIDE_SHARE * 1.01 * (time.monotonic() - began)


def test_without_a_job_there_is_no_break_and_one_ends_with_the_job(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(generation_room.time, "sleep", slept.append)
    answers = iter([False, True, True, True, False])
    breaks = Breaks(lambda: next(answers))
    breaks.take()
    assert slept == []
    breaks._since -= 1000  # so long has it computed
    breaks.take()
    assert slept == [generation_room.CHECK_SECONDS] * 2


def test_on_a_gpu_it_ends_when_a_job_starts(job):
    assert subprocess.Popen([sys.executable, "-c", WATCHING]).wait(60) == 7


def test_on_a_gpu_nothing_is_loaded_beside_a_job(job):
    check_room(0, is_exclusive=False)
    with pytest.raises(GenerationBusy, match="GPU"):
        check_room(0, is_exclusive=True)


def test_it_ends_when_memory_runs_short_beside_a_job(job, monkeypatch):
    memory = psutil.virtual_memory()
    needed: list[bool] = []
    short = memory._replace(available=int(0.03 * memory.total))
    monkeypatch.setattr(generation_room.psutil, "virtual_memory", lambda: short)
    monkeypatch.setattr(generation_room, "CHECK_SECONDS", 3600.0)
    generation_room.JobWatch(lambda: False, lambda: needed.append(True))
    wait_until(lambda: bool(needed), 60)


def test_a_tenth_of_the_memory_and_more_beside_jobs_stays_free(monkeypatch):
    memory = psutil.virtual_memory()
    scarce = memory._replace(available=int(0.11 * memory.total))
    monkeypatch.setattr(generation_room.psutil, "virtual_memory", lambda: scarce)
    monkeypatch.setattr(generation_room, "list_jobs", list)
    check_room(0, is_exclusive=False)
    with pytest.raises(GenerationBusy, match="kept for jobs"):
        check_room(memory.total // 50, is_exclusive=False)
