"""Keeps the generation process out of the way of jobs: their GPU, their memory, their CPU time."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from jobs.engine.processes import is_job_process
from jobs.errors import GenerationBusy

KEPT_SHARE = 0.1  # of the machine's memory, which stays free
GROWTH_SHARE = 0.25  # of what jobs hold, kept free for them as well
LEAST_SHARE = 0.04  # of the machine's memory: with less left and a job running, the process ends
BESIDE_SHARE = 0.08  # of the time is computed in while a job runs on the same cores
CHECK_SECONDS = 1.0


def list_jobs() -> list[psutil.Process]:
    """The processes of jobs on this machine."""
    return [process for process in psutil.process_iter() if is_job_process(process)]


def check_room(needed_bytes: int, is_exclusive: bool) -> None:
    """Check that the model can be loaded beside the jobs on this machine.

    Args:
        is_exclusive: whether nothing is generated while a job runs, as on a GPU and by vLLM.

    Raises:
        GenerationBusy: a job may use the GPU, or too little memory would be left.
    """
    jobs = list_jobs()
    if is_exclusive and jobs:
        raise GenerationBusy(
            "A job is running, and beside it no answers are generated on a GPU or by vLLM; try again later"
        )
    memory = psutil.virtual_memory()
    held = 0
    for process in jobs:
        with contextlib.suppress(psutil.Error):
            held += process.memory_info().rss
    kept = int(KEPT_SHARE * memory.total + GROWTH_SHARE * held)
    if memory.available - needed_bytes < kept:
        raise GenerationBusy(
            f"The model needs {needed_bytes / 2**30:.1f} GiB; {memory.available / 2**30:.1f} GiB are available and "
            f"{kept / 2**30:.1f} GiB of them are kept for jobs and the service; try again later"
        )


class JobWatch:
    """Watches for jobs from a thread of its own; `sees_job` is whether one runs.

    `on_need` is called once a job needs what this process holds: the GPU, or memory that is nearly used up.
    """

    def __init__(self, has_gpu: Callable[[], bool], on_need: Callable[[], None]) -> None:
        self._has_gpu = has_gpu
        self._on_need = on_need
        self.sees_job = False
        threading.Thread(target=self._watch, name="job-watch", daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.sees_job = bool(list_jobs())
            if self.sees_job:
                memory = psutil.virtual_memory()
                if self._has_gpu() or memory.available < LEAST_SHARE * memory.total:
                    self._on_need()
            time.sleep(CHECK_SECONDS)


class Breaks:
    """Breaks of a thread that computes, so long that it computes `BESIDE_SHARE` of the time; taken while `are_needed`.

    The kernel's priorities can't do this: Linux shares cores among sessions first, and a job's threads wait for the one
    that was displaced.
    """

    def __init__(self, are_needed: Callable[[], bool]) -> None:
        self._are_needed = are_needed
        self.start()

    def start(self) -> None:
        """Count the time from now on."""
        self._since = time.monotonic()

    def take(self) -> None:
        """Wait in proportion to the time since the last break ended, but no longer than breaks are needed."""
        if self._are_needed():
            now = time.monotonic()
            end = now + (now - self._since) * (1 / BESIDE_SHARE - 1)
            while (left := end - time.monotonic()) > 0 and self._are_needed():
                time.sleep(min(left, CHECK_SECONDS))
        self.start()


def be_first_to_go() -> None:
    """Let the kernel end this process before any other where memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
