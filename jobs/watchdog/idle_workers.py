"""Idle workers, as a duty of the watchdog: a worker that takes nothing though something waits for it is started anew.

Prefect's worker keeps a slot of its `--limit` for ever when the deployment of a run that it has just taken is gone
(`BaseWorker._submit_run` of Prefect 3.8 returns without giving it back): with a limit of 1 it never takes another one.
"""

import logging
import time
from datetime import UTC, datetime, timedelta

import httpx
import psutil

from jobs.engine.pool_runs import PoolRuns
from jobs.engine.processes import is_job_process
from jobs.stack.process_manager import Process, Supervisor
from jobs.watchdog.stopwatch import Clock, Stopwatch

logger = logging.getLogger(__name__)

LATE = timedelta(seconds=30)  # after it was due, a run waits for want of a worker
IDLE_SECONDS = 45.0  # longer than a worker takes to start on a machine at its limit


class IdleWorkers:
    """Looks at the workers of one stack on this machine."""

    def __init__(self, runs: PoolRuns, supervisor: Supervisor, clock: Clock = time.monotonic) -> None:
        self._runs = runs
        self._supervisor = supervisor
        self._stopwatch = Stopwatch(clock)

    def look(self) -> None:
        """One look. Raises httpx.HTTPError and StackError."""
        idle = [worker for worker in self._find_workers() if not _is_excused(worker)]
        self._stopwatch.keep({worker.name for worker in idle})
        seconds = {worker.name: self._stopwatch.seconds(worker.name, "idle", worker.pid) for worker in idle}
        suspects = [name for name in seconds if seconds[name] >= IDLE_SECONDS]
        if suspects and self._is_late():
            for name in suspects:
                logger.warning("%s takes nothing though jobs wait for it: it is started anew", name)
                self._supervisor.stop(name)
                self._supervisor.start(name)

    def _find_workers(self) -> list[Process]:
        parts = self._supervisor.processes().values()
        return [part for part in parts if part.name.startswith("worker-") and part.pid is not None]

    def _is_late(self) -> bool:
        """Whether a run that a worker would be given now was due a while ago: limits and pauses are minded."""
        wanted = {"scheduled_before": (datetime.now(UTC) - LATE).isoformat(), "limit": 1}
        path = f"/work_pools/{self._runs.work_pool}/get_scheduled_flow_runs"
        answer = self._runs.prefect.post(path, json=wanted)
        return answer.status_code != httpx.codes.NOT_FOUND and bool(answer.raise_for_status().json())


def _is_excused(worker: Process) -> bool:
    """Whether a job's process descends from it, or somebody has stopped it where it stands (SIGSTOP)."""
    try:
        process = psutil.Process(worker.pid)
        return process.status() == psutil.STATUS_STOPPED or any(map(is_job_process, process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return False
