"""Periodic task: finishes cancellations, once a run's process is gone or by killing it."""

import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, update

from jobs.engine.pool_runs import PoolRuns, StateRefused
from jobs.engine.processes import find_processes, kill_processes_of
from jobs.lifecycle.attempts import mark_cancelled, read_attempts
from jobs.lifecycle.ends import is_abandoned
from jobs.storage.tables import JobAttempt
from jobs.vocabulary import FLOW_NAME, RunState, make_state
from jobs.watchdog.stopwatch import Stopwatch

logger = logging.getLogger(__name__)

MESSAGE = "Cancelled; its process was gone."
GRACE_SECONDS = 5.0  # for the worker to finish the cancellation itself
KILL_SECONDS = 9.0  # for a process to save its last step and exit


class Cancellations:
    """Finishes runs that Prefect would leave in Cancelling for 300 seconds, and stops processes that do not react.

    No worker finishes a run whose process started just as it was cancelled, whose worker died, or that runs in a
    container or pod. A process on another host learns of it by its heartbeat (`jobs.lifecycle.attempts`), and can't
    write any more once the run is cancelled.

    Args:
        is_local: the workers are on this machine, so processes can be seen and killed.
    """

    def __init__(self, engine: Engine, runs: PoolRuns, is_local: bool, stopwatch: Stopwatch | None = None) -> None:
        self._engine = engine
        self._runs = runs
        self._is_local = is_local
        self._stopwatch = stopwatch or Stopwatch()

    def finish(self) -> None:
        """Cancel runs that have been without a process for a while. Raises httpx.HTTPError and SQLAlchemyError."""
        jobs, others = self._runs.read([RunState.CANCELLING], FLOW_NAME)
        runs = [*jobs, *others]
        self._stopwatch.keep({run["id"] for run in runs})
        if not self._is_local:
            self._finish_elsewhere(jobs, others)
            return
        for run in runs:
            has_process = bool(find_processes(run["run_id"]))
            seconds = self._stopwatch.seconds(run["id"], "process", has_process)
            if has_process and seconds >= KILL_SECONDS:
                kill_processes_of(run["run_id"])
                logger.warning("Job %s: its process did not react to the cancellation and was killed", run["id"])
                self._end(run)
            elif not has_process and seconds >= GRACE_SECONDS:
                self._end(run)

    def _finish_elsewhere(self, jobs: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
        attempts = read_attempts(self._engine, [UUID(run["id"]) for run in jobs])
        for run in jobs:
            job_id = UUID(run["id"])
            attempt = attempts.get(job_id)
            if not is_abandoned(run) and (attempt is None or attempt.cancelled_at is None):
                mark_cancelled(self._engine, job_id, run)  # in Prefect, and its process does not know
            works = attempt is not None and attempt.token is not None
            if self._seconds(run) < (KILL_SECONDS if works else GRACE_SECONDS):
                continue
            with self._engine.begin() as connection:
                connection.execute(update(JobAttempt).where(JobAttempt.job_id == job_id).values(token=None))
            if works:
                logger.warning("Job %s: its process did not react to the cancellation and may not write more", job_id)
            self._end(run)
        for run in others:
            if self._seconds(run) >= KILL_SECONDS:
                self._end(run)

    def _seconds(self, run: Mapping[str, Any]) -> float:
        return self._stopwatch.seconds(run["id"], "state", run["state_type"])

    def _end(self, run: Mapping[str, Any]) -> None:
        message = run["state"]["message"] if is_abandoned(run) else MESSAGE
        try:
            self._runs.set_state(run["id"], make_state(RunState.CANCELLED, message))
        except StateRefused as error:
            logger.info("Job %s: its run has changed meanwhile: %s", run["id"], error)
        else:
            logger.info("Job %s is cancelled: its process was gone", run["id"])
