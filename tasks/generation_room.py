"""Keeps the generation process out of the way of jobs: their GPU, their memory, their CPU time."""

import contextlib
import os
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
CHECK_SECONDS = 1.0


def list_jobs() -> list[psutil.Process]:
    """The processes of jobs on this machine."""
    return [process for process in psutil.process_iter() if is_job_process(process)]


def check_room(needed_bytes: int, has_gpu: bool) -> None:
    """Check that the model can be loaded beside the jobs on this machine.

    Raises:
        GenerationBusy: a job may use the GPU, or too little memory would be left.
    """
    jobs = list_jobs()
    if has_gpu and jobs:
        raise GenerationBusy("A job is running, and answers are not generated on a GPU beside it; try again later")
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
    """Watches for jobs from a thread of its own.

    While a job runs, this process gets CPU time only where nobody else wants it (SCHED_IDLE), and `on_need` is called
    once when the job needs what this process holds: the GPU, or memory that is nearly used up.
    """

    def __init__(self, has_gpu: Callable[[], bool], on_need: Callable[[], None]) -> None:
        self._has_gpu = has_gpu
        self._on_need = on_need
        self.has_yielded_cpu = False
        self.sees_job = False
        threading.Thread(target=self._watch, name="job-watch", daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.sees_job = bool(list_jobs())
            if self.sees_job:
                yield_cpu()  # each time: threads start with the policy of the one that starts them
                self.has_yielded_cpu = True
                memory = psutil.virtual_memory()
                if self._has_gpu() or memory.available < LEAST_SHARE * memory.total:
                    self._on_need()
            time.sleep(CHECK_SECONDS)


def yield_cpu() -> None:
    """Let all threads of this process run only while a core is idle. Without privileges this can't be undone.

    Where Linux groups processes by their session (autogroup), the groups share the cores first, by their own weights.
    """
    if not hasattr(os, "SCHED_IDLE"):
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")  # the lowest weight
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def be_first_to_go() -> None:
    """Let the kernel end this process before any other where memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
