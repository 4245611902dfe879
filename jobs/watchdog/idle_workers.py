"""Periodic task: restarts workers that take no runs although runs are waiting.

If the deployment of a run is deleted just as Prefect's worker takes it, the worker never frees that slot of its
`--limit` (`BaseWorker._submit_run` of Prefect 3.8): with a limit of 1 it takes no other run.
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

LATE = timedelta(seconds=30)  # a run waiting longer than this after it was due has no worker
IDLE_SECONDS = 45.0  # longer than a worker's start takes on a fully loaded machine


class IdleWorkers:
    """Checks the workers of one stack on this machine."""

    def __init__(self, runs: PoolRuns, supervisor: Supervisor, clock: Clock = time.monotonic) -> None:
        self._runs = runs
        self._supervisor = supervisor
        self._stopwatch = Stopwatch(clock)

    def look(self) -> None:
        """Run the task once. Raises httpx.HTTPError and StackError."""
        idle = [worker for worker in self._find_workers() if not _is_excused(worker)]
        self._stopwatch.keep({worker.name for worker in idle})
        seconds = {worker.name: self._stopwatch.seconds(worker.name, "idle", worker.pid) for worker in idle}
        suspects = [name for name in seconds if seconds[name] >= IDLE_SECONDS]
        if suspects and self._is_late():
            for name in suspects:
                logger.warning("%s takes no runs although jobs are waiting: restarting it", name)
                self._supervisor.stop(name)
                self._supervisor.start(name)

    def _find_workers(self) -> list[Process]:
        parts = self._supervisor.processes().values()
        return [part for part in parts if part.name.startswith("worker-") and part.pid is not None]

    def _is_late(self) -> bool:
        """Whether a run that a worker would get now, given limits and pauses, has been due for a while.

        A worker that polls in the same moment hides it from one look: Prefect reads these rows with `SKIP LOCKED`.
        """
        wanted = {"scheduled_before": (datetime.now(UTC) - LATE).isoformat(), "limit": 1}
        path = f"/work_pools/{self._runs.work_pool}/get_scheduled_flow_runs"
        response = self._runs.prefect.post(path, json=wanted)
        return response.status_code != httpx.codes.NOT_FOUND and bool(response.raise_for_status().json())


def _is_excused(worker: Process) -> bool:
    """Whether the worker has a job's process, or was stopped by SIGSTOP."""
    try:
        process = psutil.Process(worker.pid)
        return process.status() == psutil.STATUS_STOPPED or any(map(is_job_process, process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return False
