"""Periodic task: restarts jobs whose process is gone or silent, or fails them after too many lost attempts.

Only this task decides that. A job whose run Prefect calls Crashed is shown as running until the decision.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, select, text, update

from jobs.engine.pool_runs import PoolRuns, StateRefused
from jobs.engine.pool_workers import PoolWorkers
from jobs.engine.processes import (
    find_processes,
    find_reading_seconds,
    has_stopped_process,
    is_process_of,
    kill_processes_of,
)
from jobs.lifecycle.attempts import HEARTBEAT_SECONDS, HOST, end_connections, lock_attempt, read_attempts
from jobs.lifecycle.ends import STATES, has_ended, keep_run, record_end
from jobs.status import JobStatus
from jobs.storage.tables import JobAttempt, JobReport
from jobs.vocabulary import FLOW_NAME, RunState, StateName, make_state
from jobs.watchdog.elsewhere import LEAVE_SECONDS, PREFECT, SAME_LOSS, SILENCE_SECONDS, START_SECONDS, Elsewhere
from jobs.watchdog.stopwatch import Stopwatch

logger = logging.getLogger(__name__)

ACTIVE = [RunState.PENDING, RunState.RUNNING, RunState.CRASHED]
IDLE_SECONDS = 10.0  # without CPU time, for a process that is silent because its input holds the GIL
GONE_SECONDS = 4.0  # without a process: two runs of the task, so that its last report to Prefect has arrived
PENDING_SECONDS = 30.0  # until a run taken by a worker must have a process
PAUSED = (RunState.SCHEDULED, RunState.PAUSED)

REASONS = {
    "killed": "the job's process was killed, perhaps because memory ran out; see the logs of the worker and the system",
    "lost_worker": "the worker was lost, and the job's process with it",
    "timeout": f"the job's process sent no heartbeat for {SILENCE_SECONDS:.0f} s and was ended",
    "crashed": "the job's process ended without an error message; see the worker's log",
    "not_started": "no process of the job has started in time; see the log of its worker, or its pod's events",
}


class Recovery:
    """Checks all jobs that have a process or should have one.

    Args:
        is_local: the workers are on this machine, so processes can be seen and killed; `Elsewhere` judges others.
        max_attempts: number of lost attempts after which a job fails.
        pod_start_seconds: until a container or pod must have started.
    """

    def __init__(
        self,
        engine: Engine,
        runs: PoolRuns,
        max_attempts: int,
        is_local: bool,
        stopwatch: Stopwatch | None = None,
        pod_start_seconds: float = START_SECONDS,
    ) -> None:
        self._engine = engine
        self._runs = runs
        self._max_attempts = max_attempts
        self._is_local = is_local
        self._stopwatch = stopwatch or Stopwatch()
        self._elsewhere = Elsewhere(PoolWorkers(runs.prefect, runs.work_pool), self._stopwatch, pod_start_seconds)

    def look(self) -> None:
        """Run the task once. Raises SQLAlchemyError and httpx.HTTPError."""
        try:
            runs, found = self._runs.read(ACTIVE, FLOW_NAME)
            attempts = read_attempts(self._engine, [UUID(run["id"]) for run in runs])
        except BaseException:
            self._stopwatch.keep(set())  # heartbeats could not be written meanwhile
            raise
        jobs = {run["id"] for run in runs}
        others = [run for run in found if run["state_type"] != RunState.CRASHED]
        self._stopwatch.keep(jobs | {run["id"] for run in others} | {PREFECT})
        self._stopwatch.seconds(PREFECT, "answers", True)
        self._elsewhere.refresh()
        self._end_others(others)
        if not self._is_local:
            self._note_stops(jobs)
        for run in runs:
            cause = self._find_cause(run, attempts.get(UUID(run["id"])))
            if cause is not None:
                self._settle(run, cause)

    def _find_cause(self, run: dict[str, Any], attempt: JobAttempt | None) -> str | None:
        """Why a job's attempt is lost; None while it is not, or not known to be."""
        has_begun = attempt is not None and attempt.number > attempt.settled
        beats = attempt is not None and has_begun and attempt.token is not None
        is_here = self._is_local and (attempt is None or not has_begun or attempt.host == HOST)
        sign = (attempt.number, attempt.token, _seconds_of(attempt.heartbeat_at)) if attempt else None
        silence = self._stopwatch.seconds(run["id"], "silence", sign)
        if is_here:
            has_process = _has_process(run, attempt)
            seconds = self._stopwatch.seconds(run["id"], "process", has_process)
            if not has_process:
                return None if seconds < _gone_limit(run) else "killed" if beats else "crashed"
            is_stopped = not beats and has_stopped_process(run["run_id"])
            if self._stopwatch.seconds(run["id"], "stopped", is_stopped) >= SILENCE_SECONDS and is_stopped:
                return "timeout"
        if run["state_type"] == RunState.CRASHED:
            self._take_back(run, is_alive=beats and silence < HEARTBEAT_SECONDS)
        if not is_here:
            return self._elsewhere.find_cause(run, attempt, silence)
        limit = SILENCE_SECONDS if beats else LEAVE_SECONDS if has_begun else START_SECONDS
        if beats and self._is_reading(run, silence):
            limit = START_SECONDS
        return None if silence < limit else "timeout"

    def _is_reading(self, run: Mapping[str, Any], silence: float) -> bool:
        """Whether a silent process is busy reading input, which holds the GIL: its own limits end it.

        Killed from here, the job would be retried and hang the same way.
        """
        if silence < SILENCE_SECONDS - IDLE_SECONDS:
            return False
        spent = find_reading_seconds(run["run_id"])
        idle = self._stopwatch.seconds(run["id"], "reading", spent and round(spent, 1))
        return spent is not None and idle < IDLE_SECONDS

    def _end_others(self, runs: list[dict[str, Any]]) -> None:
        """Mark runs of other flows without a process as Crashed: as `Running` they would hold a job's slot for ever."""
        for run in runs:
            if not self._has_gone(run):
                continue
            with suppress(StateRefused):  # it has changed meanwhile
                self._runs.set_state(run["id"], make_state(RunState.CRASHED, "Its process was gone."))
                logger.info("Marked run %s, which is not a job, as Crashed: its process was gone", run["id"])

    def _has_gone(self, run: dict[str, Any]) -> bool:
        if not self._is_local:
            return self._elsewhere.has_lost_other(run)
        has_process = _has_process(run, None)
        seconds = self._stopwatch.seconds(run["id"], "process", has_process)
        return not has_process and seconds >= _gone_limit(run)

    def _note_stops(self, active: set[str]) -> None:
        """Settle attempts that ended although their runs were paused or rescheduled by hand: nothing was lost.

        Otherwise the next attempt, before it begins, would be taken for the one that has ended.
        """
        has_said = JobAttempt.token.is_(None) & (JobAttempt.is_interrupted | JobAttempt.cause.is_not(None))
        is_open = select(JobReport.job_id).where(JobReport.status.is_(None))
        with self._engine.connect() as connection:
            said = select(JobAttempt.job_id).where(has_said, JobAttempt.job_id.in_(is_open))
            waiting = [job_id for job_id in connection.execute(said).scalars() if str(job_id) not in active]
        for job_id, run in (self._runs.find_by_id(waiting) if waiting else {}).items():
            if run["state_type"] in PAUSED:
                given_up = {"settled": JobAttempt.number, "is_interrupted": False, "cause": None, "message": None}
                with self._engine.begin() as connection:
                    connection.execute(update(JobAttempt).where(JobAttempt.job_id == job_id, has_said).values(given_up))

    def _take_back(self, run: dict[str, Any], is_alive: bool) -> None:
        """Undo Crashed for a job with a heartbeat: the report was late and about an earlier attempt."""
        seconds = self._stopwatch.seconds(run["id"], "is alive", is_alive)
        if is_alive and seconds >= GONE_SECONDS:
            self._runs.set_state(run["id"], make_state(RunState.RUNNING), force=True)
            logger.info("Job %s is running: it sends heartbeats", run["id"])

    # -- what follows from it

    def _settle(self, run: dict[str, Any], cause: str) -> None:
        """Kill what is left of the attempt and decide: retry, failed, or cancelled if that was requested."""
        if self._is_local:
            kill_processes_of(run["run_id"])
        else:
            end_connections(self._engine, run["run_id"])
        try:
            self._decide(run, cause)
        except StateRefused as error:
            logger.info("Job %s: its run has changed meanwhile: %s", run["id"], error)
            return
        self._stopwatch.forget(run["id"])

    def _decide(self, run: dict[str, Any], cause: str) -> None:
        """End the job or retry it, with its row locked against a cancellation."""
        job_id = UUID(run["id"])
        with self._engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            attempt = lock_attempt(connection, job_id)
            if status := has_ended(connection, job_id):
                self._runs.set_state(run["id"], {**STATES[status], "message": "Its job has ended."}, force=True)
                return
            keep_run(connection, job_id, run)
            changes = _count_loss(attempt)
            # The attempt's own report must not be taken for that of the next one, which may never start.
            changes |= {"token": None, "is_interrupted": False, "cause": None, "message": None}
            connection.execute(update(JobAttempt).where(JobAttempt.job_id == job_id).values(**changes))
            cause = attempt.cause or cause
            if attempt.cancelled_at is not None or RunState.CANCELLING in self._runs.read_history(run["id"]):
                record_end(connection, job_id, JobStatus.CANCELLED)
                self._runs.set_state(run["id"], make_state(RunState.CANCELLED, "Cancelled; its process was gone."))
                return
            reason = attempt.message or REASONS.get(cause, cause)
            if changes["lost"] < self._max_attempts:
                self._runs.forget_process(run["id"])
                state = self._again(run, attempt, reason)
                self._runs.set_state(run["id"], state, force=state["name"] == StateName.LOST)
                why = "stopped" if attempt.is_interrupted else cause
                logger.info("Job %s is restarted (%s; attempts lost: %s)", run["id"], why, changes["lost"])
                return
            error = f"{reason}; it was the last of {self._max_attempts} attempts"
            record_end(connection, job_id, JobStatus.FAILED, error, cause)
            self._runs.set_state(run["id"], make_state(RunState.FAILED, error))
            logger.info("Job %s has failed (%s)", run["id"], cause)

    def _again(self, run: Mapping[str, Any], attempt: JobAttempt, reason: str) -> dict[str, Any]:
        """The state for a retry: scheduled for the original time, so that the job keeps its place in the queue.

        Without a deployment the run waits paused for a re-created one: a worker that took it would cancel it and take
        no other run (`jobs.watchdog.idle_workers`).
        """
        said = (attempt.message or "it was stopped") if attempt.is_interrupted else reason
        message = f"Attempt {attempt.number} ended: {said}. The job restarts automatically."
        if not self._runs.has_deployment(run):
            return make_state(RunState.PAUSED, message, StateName.LOST)
        details = {"scheduled_time": run["expected_start_time"]}
        return {**make_state(RunState.SCHEDULED, message, StateName.AWAITING_RETRY), "state_details": details}


def _has_process(run: Mapping[str, Any], attempt: JobAttempt | None) -> bool:
    pids = (run["infrastructure_pid"], attempt.pid if attempt else None)
    return any(is_process_of(run["run_id"], pid) for pid in pids) or bool(find_processes(run["run_id"]))


def _seconds_of(time: datetime | None) -> float | None:
    """The same for every session, whatever its time zone."""
    return None if time is None else time.timestamp()


def _gone_limit(run: Mapping[str, Any]) -> float:
    """Seconds that a run may be without a process: longer while its worker starts one."""
    is_starting = run["state_type"] == RunState.PENDING and not run["infrastructure_pid"]
    return PENDING_SECONDS if is_starting else GONE_SECONDS


def _count_loss(attempt: JobAttempt) -> dict[str, Any]:
    """The row's new `settled, settled_at, lost`: each lost attempt counts once, a stopped one not at all.

    An attempt that never started counts too, unless it may be a second report of the one settled a moment ago.
    """
    now = datetime.now(UTC)
    if attempt.number > attempt.settled or attempt.is_interrupted:
        lost = attempt.lost + (not attempt.is_interrupted)
        return {"settled": attempt.number, "settled_at": now, "lost": lost}
    is_reported = attempt.cause is not None  # by the process itself, or its keeper
    if not is_reported and attempt.settled_at is not None and abs(now - attempt.settled_at) < SAME_LOSS:
        return {"settled": attempt.settled, "settled_at": attempt.settled_at, "lost": attempt.lost}
    return {"settled": attempt.settled, "settled_at": now, "lost": attempt.lost + 1}
