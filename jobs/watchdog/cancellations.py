"""Cancellations as a duty of the watchdog: a run that is being cancelled is cancelled once its process is gone."""

import logging
import time

from jobs.engine.pool_runs import PoolRuns, StateRefused
from jobs.engine.processes import find_processes, kill_processes_of
from jobs.lifecycle.ends import is_abandoned
from jobs.vocabulary import FLOW_NAME, RunState, make_state
from jobs.watchdog.stopwatch import Clock, Stopwatch

logger = logging.getLogger(__name__)

MESSAGE = "Cancelled; its process was gone."
GRACE_SECONDS = 5.0  # a worker that is at it takes its own steps first
KILL_SECONDS = 9.0  # for a process to save its last step and go


class Cancellations:
    """Ends what Prefect leaves in Cancelling for 300 seconds, and processes that do not react.

    A run whose process starts just as it is cancelled finds itself unfinished and goes, and no worker looks after it;
    so it is with a run whose worker died. For workers of this machine only: others' processes can't be seen from here.
    """

    def __init__(self, runs: PoolRuns, clock: Clock = time.monotonic) -> None:
        self._runs = runs
        self._stopwatch = Stopwatch(clock)

    def finish(self) -> None:
        """Cancel those that were without a process for a while. Raises httpx.HTTPError."""
        jobs, others = self._runs.read([RunState.CANCELLING], FLOW_NAME)
        runs = [*jobs, *others]
        self._stopwatch.keep({run["id"] for run in runs})
        for run in runs:
            has_process = bool(find_processes(run["run_id"]))
            seconds = self._stopwatch.seconds(run["id"], "process", has_process)
            if has_process and seconds >= KILL_SECONDS:
                kill_processes_of(run["run_id"])
                logger.warning("Job %s: its process did not react to being cancelled and was ended", run["id"])
            if not has_process and seconds >= GRACE_SECONDS:
                self._end(run["id"], run["state"]["message"] if is_abandoned(run) else MESSAGE)

    def _end(self, run_id: str, message: str) -> None:
        state = make_state(RunState.CANCELLED, message)
        try:
            self._runs.set_state(run_id, state)
        except StateRefused as error:
            logger.info("Job %s has moved on: %s", run_id, error)
        else:
            logger.info("Job %s is cancelled: its process was gone", run_id)
