"""The process that answers keeps out of the way of jobs: a real process with a job's variable stands for one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from jobs.engine.processes import VARIABLE
from jobs.errors import GenerationBusy
from tasks import generation_room
from tasks.generation_room import check_room, list_jobs
from tests.conftest import wait_until

WATCHING = """
import os, sys, threading, time
from tasks.generation_room import JobWatch
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
watch = JobWatch(lambda: sys.argv[1] == "gpu", lambda: os._exit(7))
while True:
    time.sleep(0.1)
    if watch.has_yielded_cpu and not watch.sees_job:
        os._exit(8)
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


def watching(device: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WATCHING, device], start_new_session=True)


def find_policies(pid: int) -> set[int]:
    return {os.sched_getscheduler(thread.id) for thread in psutil.Process(pid).threads()}


def test_beside_a_job_all_threads_get_only_idle_cpu_time(job):
    process = watching("cpu")
    try:
        wait_until(lambda: find_policies(process.pid) == {os.SCHED_IDLE}, 60)
        if (group := Path(f"/proc/{process.pid}/autogroup")).exists():
            assert group.read_text().strip().endswith("nice 19")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_on_a_gpu_it_ends_when_a_job_starts(job):
    assert watching("gpu").wait(60) == 7


def test_on_a_gpu_nothing_is_loaded_beside_a_job(job):
    check_room(0, has_gpu=False)
    with pytest.raises(GenerationBusy, match="GPU"):
        check_room(0, has_gpu=True)


def test_it_ends_when_memory_runs_short_beside_a_job(job, monkeypatch):
    memory = psutil.virtual_memory()
    needed: list[bool] = []
    short = memory._replace(available=int(0.03 * memory.total))
    monkeypatch.setattr(generation_room.psutil, "virtual_memory", lambda: short)
    monkeypatch.setattr(generation_room, "yield_cpu", lambda: None)  # this is the tests' own process
    monkeypatch.setattr(generation_room, "CHECK_SECONDS", 3600.0)
    generation_room.JobWatch(lambda: False, lambda: needed.append(True))
    wait_until(lambda: bool(needed), 60)


def test_a_tenth_of_the_memory_and_more_beside_jobs_stays_free(monkeypatch):
    memory = psutil.virtual_memory()
    scarce = memory._replace(available=int(0.11 * memory.total))
    monkeypatch.setattr(generation_room.psutil, "virtual_memory", lambda: scarce)
    monkeypatch.setattr(generation_room, "list_jobs", list)
    check_room(0, has_gpu=False)
    with pytest.raises(GenerationBusy, match="kept for jobs"):
        check_room(memory.total // 50, has_gpu=False)
