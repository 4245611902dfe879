"""Periodic task: handles changes that people make to runs in Prefect's UI or API.

Whatever was done to a run, its job has one end, its slot becomes free, and no stale process works on it:

- a run restarted ("Retry") after its job has ended gets its final state back, and its process is killed;
- a deleted run counts as cancelled; one that was deleted with its deployment, or lost its deployment or work queue, is
  re-created and keeps its place in the queue;
- the process of a run that was paused or rescheduled while it trained saves its last step and exits.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

import psutil
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import OperationalError

from jobs.engine.pool_runs import PoolRuns
from jobs.engine.processes import VARIABLE, find_processes, is_job_process, kill_processes_of
from jobs.lifecycle.ends import ENDED, STATES, has_ended, is_abandoned, keep_run, record_end, settle
from jobs.lifecycle.lost_runs import LostRuns, Outcome, is_lost
from jobs.status import JobStatus
from jobs.storage.tables import JobAttempt, JobReport
from jobs.url_credentials import PREFECT_URL, split_credentials
from jobs.vocabulary import FLOW_NAME, RunState, StateName
from jobs.watchdog.stopwatch import Clock, Stopwatch

logger = logging.getLogger(__name__)

OPEN = [RunState.SCHEDULED, RunState.PENDING, RunState.RUNNING, RunState.PAUSED, RunState.CRASHED]
LEAVE_SECONDS = 10.0  # for a process to exit by itself once its job has ended
SAVE_SECONDS = 20.0  # to save its last step once its run was paused
LOOK_SECONDS = 60.0  # between checks of every open job, even if the number of runs is as expected
RETURNED = "This job has ended before, and a final status never changes; submit it again to train it again."


class ManualChanges:
    """Finds runs whose state contradicts their jobs, and corrects them.

    Args:
        api_url: Prefect's API, as in the environment of this stack's processes.
        is_local: processes can be seen and killed; otherwise those of ended jobs exit at their next heartbeat.
    """

    def __init__(
        self,
        engine: Engine,
        runs: PoolRuns,
        api_url: str,
        is_local: bool,
        stopwatch: Stopwatch | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._engine = engine
        self._runs = runs
        self._api_url = api_url
        self._is_local = is_local
        self._clock = clock
        self._stopwatch = stopwatch or Stopwatch(clock)
        self._watched: set[str] = set()
        self._lost = LostRuns(engine, runs)
        self._difference: int | None = None
        self._looked_at = float("-inf")

    def look(self) -> None:
        """Run the task once. Raises SQLAlchemyError and httpx.HTTPError."""
        self._watched = set()
        try:
            self._put_back()
            self._look_at_work()
            self._look_at_open()
            if self._is_local:
                self._end_unowned()
            self._stopwatch.keep(self._watched)
        except OperationalError as error:
            if "lock timeout" not in str(error):
                raise
            logger.info("A job is about to end by itself; checking it again later")  # it registers its adapter

    # -- ends

    def _put_back(self) -> None:
        """Reset runs of ended jobs that were restarted: those that are queued or running although their job ended."""
        flow_runs = {"state": {"type": {"any_": OPEN}}, "start_time": {"is_null_": False}}
        runs = {UUID(run["id"]): run for run in self._runs.find(flow_runs, FLOW_NAME)}
        ended = select(JobReport.job_id, JobReport.status).where(
            JobReport.job_id.in_([*runs]), JobReport.status.is_not(None)
        )
        with self._engine.connect() as connection:
            found = [(row.job_id, JobStatus(row.status)) for row in connection.execute(ended)]
        for job_id, status in found:
            run = runs[job_id]
            # A running one may be about to report the end that it has just written.
            seconds = self._seconds(run["id"], "ending", run["state"]["id"])
            if run["state_type"] != RunState.RUNNING or seconds >= LEAVE_SECONDS:
                self._runs.set_state(run["id"], {**STATES[status], "message": RETURNED}, force=True)
                logger.info("Job %s has %s: reset its run, which was restarted", job_id, status.value)

    def _seconds(self, run_id: str, what: str, value: object) -> float:
        self._watched.add(run_id)
        return self._stopwatch.seconds(run_id, what, value)

    # -- jobs at work

    def _look_at_work(self) -> None:
        """Check jobs that have a process with a valid token: their runs must be running."""
        wanted = select(JobAttempt.job_id, JobAttempt.number).join(JobReport, JobReport.job_id == JobAttempt.job_id)
        is_at_work = JobAttempt.token.is_not(None) & JobReport.run["deployment_id"].astext.is_not(None)
        with self._engine.connect() as connection:
            at_work = {row.job_id: row.number for row in connection.execute(wanted.where(is_at_work))}
        runs = self._runs.find_by_id(at_work) if at_work else {}
        for job_id, number in at_work.items():
            run = runs.get(job_id)
            if run is None:
                self._cancel(job_id, "its run was deleted while it trained")
            elif run["state_type"] in ENDED:
                with self._engine.begin() as connection:
                    is_new = settle(connection, run)
                    if run["state_type"] != RunState.CANCELLING:  # there the process may save its last step
                        mine = JobAttempt.job_id == job_id
                        connection.execute(update(JobAttempt).where(mine).values(token=None))
                if is_new:
                    logger.info("Job %s was set to %s by hand: stopping its process", job_id, run["state_name"])
            elif run["state_type"] in (RunState.PAUSED, RunState.SCHEDULED):
                self._halt(job_id, run, number)

    def _cancel(self, job_id: UUID, why: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            connection.execute(select(JobAttempt.token).where(JobAttempt.job_id == job_id).with_for_update())
            if record_end(connection, job_id, JobStatus.CANCELLED):
                logger.info("Job %s is cancelled: %s", job_id, why)

    def _halt(self, job_id: UUID, run: Mapping[str, Any], number: int) -> None:
        """Have the job's process save its last step and exit; the job waits until its run is resumed."""
        processes = find_processes(run["run_id"]) if self._is_local else []
        seconds = self._seconds(str(job_id), "halted", number)
        if seconds == 0.0:
            logger.info("Job %s is %s: stopping its process", job_id, run["state_name"])
            pids = {process.pid for process in processes}
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    if process.ppid() not in pids:  # it stops its own children
                        process.terminate()
        if not processes or seconds >= SAVE_SECONDS:
            given_up = {"token": None, "is_interrupted": True}
            with self._engine.begin() as connection:
                connection.execute(update(JobAttempt).where(JobAttempt.job_id == job_id).values(**given_up))
            kill_processes_of(run["run_id"])

    # -- open jobs

    def _look_at_open(self) -> None:
        """Store the facts of open jobs' runs, and find those whose runs are gone or can't start."""
        is_open = JobReport.status.is_(None) & JobReport.run["deployment_id"].astext.is_not(None)
        with self._engine.connect() as connection:
            kept = {*connection.execute(select(JobReport.job_id).where(is_open)).scalars()}
        difference = self._count_open() - len(kept)
        now = self._clock()
        if difference == self._difference and now - self._looked_at < LOOK_SECONDS:
            return
        runs = {UUID(run["id"]): run for run in self._runs.find({"state": {"type": {"any_": OPEN}}}, FLOW_NAME)}
        deployments = self._lost.deployments()
        outcomes = []
        with self._engine.begin() as connection:
            for job_id in runs.keys() - kept:
                is_planned = runs[job_id]["auto_scheduled"] and not runs[job_id]["start_time"]
                if not is_planned and runs[job_id]["state_name"] != StateName.MADE_AGAIN:
                    keep_run(connection, job_id, runs[job_id])
        gone = kept - runs.keys()
        elsewhere = self._runs.find_by_id(gone)
        runs |= {job_id: run for job_id, run in elsewhere.items() if is_abandoned(run)}
        for job_id, run in runs.items():
            if run["state_name"] == StateName.MADE_AGAIN and run["id"] != run["run_id"]:
                self._lost.enqueue(job_id)
        lost = {job_id: run for job_id, run in runs.items() if is_lost(run, deployments)}
        for job_id in self._lost.sort({*lost, *(gone - elsewhere.keys())}):
            outcomes.append(self._lost.make_again(job_id, lost.get(job_id), deployments))
            if outcomes[-1] is Outcome.DELETED:
                self._cancel(job_id, "its run was deleted")
        # The end of a job in `gone` may not be written yet: once it is, it would hide another run that is deleted then.
        is_settled = Outcome.WAITS not in outcomes and not gone
        self._difference, self._looked_at = (difference if is_settled else None), now

    def _count_open(self) -> int:
        wanted = {"flows": {"name": {"any_": [FLOW_NAME]}}, "flow_runs": {"state": {"type": {"any_": OPEN}}}}
        return int(self._runs.prefect.post("/flow_runs/count", json=wanted).raise_for_status().json())

    # -- processes

    def _end_unowned(self) -> None:
        """Kill processes of ended jobs or deleted runs that do not exit by themselves."""
        by_run = _find_job_runs(self._api_url)
        runs = self._runs.name_jobs([{"id": run_id} for run_id in by_run])
        found = self._runs.find_by_id([UUID(run["id"]) for run in runs]) if runs else {}
        with self._engine.connect() as connection:
            for run in runs:
                known = found.get(UUID(run["id"]))
                # Cancellations have their own task.
                is_cancelling = known is not None and known["state_type"] == RunState.CANCELLING
                has_owner = known is not None and (is_cancelling or has_ended(connection, UUID(run["id"])) is None)
                if self._seconds(run["run_id"], "unowned", has_owner) >= LEAVE_SECONDS and not has_owner:
                    kill_processes_of(run["run_id"])
                    logger.warning("Job %s has ended: killed its remaining processes", run["id"])


def _find_job_runs(api_url: str) -> set[str]:
    """Ids of the runs that processes on this machine work on for this Prefect server."""
    found = set()
    for process in psutil.process_iter():
        if is_job_process(process):
            with suppress(psutil.Error, OSError):
                environment = process.environ()
                if split_credentials(environment.get(PREFECT_URL, ""))[0] == api_url:
                    found.add(environment[VARIABLE])
    return found
