"""Periodic task: finishes cancellations, once a run's process is gone or by killing it."""

import logging
import time

from jobs.engine.pool_runs import PoolRuns, StateRefused
from jobs.engine.processes import find_processes, kill_processes_of
from jobs.lifecycle.ends import is_abandoned
from jobs.vocabulary import FLOW_NAME, RunState, make_state
from jobs.watchdog.stopwatch import Clock, Stopwatch

logger = logging.getLogger(__name__)

MESSAGE = "Cancelled; its process was gone."
GRACE_SECONDS = 5.0  # for the worker to finish the cancellation itself
KILL_SECONDS = 9.0  # for a process to save its last step and exit


class Cancellations:
    """Finishes runs that Prefect would leave in Cancelling for 300 seconds, and kills processes that do not react.

    No worker finishes a run whose process started just as it was cancelled, or whose worker died. For workers on this
    machine only, as others' processes can't be seen from here.
    """

    def __init__(self, runs: PoolRuns, clock: Clock = time.monotonic) -> None:
        self._runs = runs
        self._stopwatch = Stopwatch(clock)

    def finish(self) -> None:
        """Cancel runs that have been without a process for a while. Raises httpx.HTTPError."""
        jobs, others = self._runs.read([RunState.CANCELLING], FLOW_NAME)
        runs = [*jobs, *others]
        self._stopwatch.keep({run["id"] for run in runs})
        for run in runs:
            has_process = bool(find_processes(run["run_id"]))
            seconds = self._stopwatch.seconds(run["id"], "process", has_process)
            if has_process and seconds >= KILL_SECONDS:
                kill_processes_of(run["run_id"])
                logger.warning("Job %s: its process did not react to the cancellation and was killed", run["id"])
            if not has_process and seconds >= GRACE_SECONDS:
                self._end(run["id"], run["state"]["message"] if is_abandoned(run) else MESSAGE)

    def _end(self, run_id: str, message: str) -> None:
        state = make_state(RunState.CANCELLED, message)
        try:
            self._runs.set_state(run_id, state)
        except StateRefused as error:
            logger.info("Job %s: its run has changed meanwhile: %s", run_id, error)
        else:
            logger.info("Job %s is cancelled: its process was gone", run_id)
