"""Decides whether an attempt on another host is lost: by its own record, its heartbeats, and those of its worker.

Its process can be neither seen nor killed from here. The token of an attempt that was given up is invalid, so a process
that comes back can't write, and ends.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.engine.pool_workers import PoolWorkers, name_worker, outlives_worker
from jobs.lifecycle.attempts import HEARTBEAT_SECONDS
from jobs.storage.tables import JobAttempt
from jobs.vocabulary import RETRAIN_FLOW_NAME, RunState
from jobs.watchdog.stopwatch import Stopwatch

SILENCE_SECONDS = 30.0  # without a heartbeat
CRASHED_SECONDS = 2 * HEARTBEAT_SECONDS  # the same, for a run that Prefect calls crashed
START_SECONDS = 300.0  # until a process must have started its attempt
LEAVE_SECONDS = 60.0  # until a process must have exited after it released its job
OFFLINE_SECONDS = 4.0  # that a worker must be offline: two runs of the task, as the label may be the former worker's
# Prefect may have been down, and have shown every worker as offline until its next heartbeat.
PREFECT_SECONDS = 40.0
SAME_LOSS = timedelta(seconds=20)  # Prefect may report one crash twice
OTHERS_SECONDS = 3600.0  # until a run of another flow is given up that may have outlived its worker

PREFECT = "prefect"  # in place of a run's id: Prefect itself


class Elsewhere:
    """Judges attempts on other hosts.

    Args:
        pod_start_seconds: until a container or pod must have started.
    """

    def __init__(self, workers: PoolWorkers, stopwatch: Stopwatch, pod_start_seconds: float) -> None:
        self._workers = workers
        self._stopwatch = stopwatch
        self._pod_start_seconds = pod_start_seconds

    def refresh(self) -> None:
        """Discard what was read for the previous check of the runs."""
        self._workers.refresh()

    def find_cause(self, run: Mapping[str, Any], attempt: JobAttempt | None, silence: float) -> str | None:
        """Why the attempt is lost; None while it is not, or not known to be. Raises httpx.HTTPError.

        Args:
            silence: seconds since its last heartbeat.
        """
        if attempt is not None and has_said_why(run, attempt):
            return "crashed"
        has_begun = attempt is not None and attempt.number > attempt.settled
        beats = attempt is not None and has_begun and attempt.token is not None
        if run["state_type"] == RunState.CRASHED:
            is_repeated = attempt is not None and not has_begun and _was_settled_just_now(attempt)
            return "crashed" if is_repeated or silence >= CRASHED_SECONDS else None
        if beats:
            return "lost_worker" if silence >= SILENCE_SECONDS else None
        if self.has_lost_worker(run):
            return "lost_worker"
        if run["state_type"] == RunState.PENDING:
            pending = self._stopwatch.seconds(run["id"], "pending", run["run_count"])
            limit = self._pod_start_seconds if outlives_worker(run) else START_SECONDS
            return "not_started" if pending >= limit else None
        return "lost_worker" if silence >= (LEAVE_SECONDS if has_begun else START_SECONDS) else None

    def has_lost_worker(self, run: Mapping[str, Any]) -> bool:
        """Whether the run's worker is offline and the run's process with it. Raises httpx.HTTPError."""
        if outlives_worker(run):
            return False
        return self._offline_seconds(run) >= OFFLINE_SECONDS and self._knows_workers()

    def has_lost_other(self, run: Mapping[str, Any]) -> bool:
        """Whether a run of another flow has no process any more, as far as is known. Raises httpx.HTTPError."""
        running = self._stopwatch.seconds(run["id"], "running", (run["state_type"], run["run_count"]))
        is_too_long = running >= OTHERS_SECONDS and RETRAIN_FLOW_NAME in run["tags"]  # it takes minutes
        if name_worker(run) is None:
            return is_too_long
        gone = self._offline_seconds(run) >= OTHERS_SECONDS and self._knows_workers()
        return self.has_lost_worker(run) or gone or is_too_long

    def _offline_seconds(self, run: Mapping[str, Any]) -> float:
        is_online = self._workers.has_online(run)
        seconds = self._stopwatch.seconds(run["id"], "worker", (name_worker(run), is_online))
        return 0.0 if is_online else seconds

    def _knows_workers(self) -> bool:
        return self._stopwatch.seconds(PREFECT, "answers", True) >= PREFECT_SECONDS


def has_said_why(run: Mapping[str, Any], attempt: JobAttempt) -> bool:
    """Whether the attempt, or the process that was to begin it, has recorded that it was stopped or why it failed.

    A run that is pending again after an attempt had begun is about to begin the next one.
    """
    if attempt.token is not None or not (attempt.is_interrupted or attempt.cause):
        return False
    return attempt.number == attempt.settled or run["state_type"] != RunState.PENDING


def _was_settled_just_now(attempt: JobAttempt) -> bool:
    return attempt.settled_at is not None and abs(datetime.now(UTC) - attempt.settled_at) < SAME_LOSS
