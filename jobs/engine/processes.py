"""Finds and kills the processes of a job on this machine, by an environment variable of Prefect's worker."""

import contextlib
import time
from pathlib import Path
from uuid import UUID

import psutil

from jobs.keeper import NOTE
from sft.confinement import is_reading

VARIABLE = "PREFECT__FLOW_RUN_ID"
KILL_SECONDS = 10.0


def find_processes(job_id: UUID | str) -> list[psutil.Process]:
    """Every process of the job, children included, without zombies."""
    return [process for process in psutil.process_iter() if _belongs_to(process, job_id)]


def has_stopped_process(job_id: UUID | str) -> bool:
    """Whether a process of the job is stopped (SIGSTOP)."""
    for process in find_processes(job_id):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                return True
    return False


def find_reading_seconds(job_id: UUID | str) -> float | None:
    """CPU seconds of the job's process while it reads confined input (`sft.confinement`); None otherwise."""
    for process in find_processes(job_id):
        with contextlib.suppress(psutil.Error, OSError):
            note = process.environ().get(NOTE)
            if note and is_reading(Path(f"/proc/{process.pid}/fd/{note}")):
                spent = process.cpu_times()
                return float(spent.user + spent.system)
    return None


def is_process_of(job_id: UUID | str, pid: int | str | None) -> bool:
    """Whether the process with this id (`pid` or `host:pid`) is alive and belongs to the job."""
    number = str(pid or "").rsplit(":", 1)[-1]
    try:
        return number.isdigit() and _belongs_to(psutil.Process(int(number)), job_id)
    except psutil.Error:
        return False


def is_job_process(process: psutil.Process) -> bool:
    """Whether the process belongs to any job."""
    try:
        return VARIABLE in process.environ() and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def measure_held_memory() -> int:
    """Bytes of main memory that the jobs on this machine hold for themselves."""
    held = 0
    for process in filter(is_job_process, psutil.process_iter()):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            held += memory.rss - getattr(memory, "shared", 0)
    return held


def kill_processes_of(job_id: UUID | str) -> bool:
    """Kill all processes of the job and wait up to 10 s for them; returns whether there were any."""
    found = find_processes(job_id)
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + KILL_SECONDS
    while any(_belongs_to(process, job_id) for process in found) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found)


def _belongs_to(process: psutil.Process, job_id: UUID | str) -> bool:
    try:
        return bool(process.environ().get(VARIABLE) == str(job_id) and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, OSError):  # gone, or another user's
        return False
