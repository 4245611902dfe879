"""`Journal`: writes a running job's report, events and metrics, and the end of its attempt."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from jobs.folders import job_folder
from jobs.lifecycle.attempts import HOST, Attempt, Heartbeat, Superseded, leave
from jobs.lifecycle.ends import keep_run
from jobs.sanitizing.log_lines import hide_passwords, keep_lines_whole
from jobs.settings import Settings
from jobs.spec import JobSpec, read_spec
from jobs.status import JobStatus
from jobs.storage.events import write_event
from jobs.storage.reports import ProgressWriter, set_report
from jobs.webhooks.call import build_event_payload
from jobs.webhooks.outbox import put_delivery
from sft.errors import StackError
from sft.sources import pick_losses
from tasks.causes import explain
from tasks.checkpoint_store import CheckpointSender
from tasks.dataset_mix import AnyDataset
from tasks.failure_log import is_debugging
from tasks.lacking import HOLD_SECONDS, leave_to_others
from tasks.tracking import MlflowTracker, Tracker, WandbTracker
from tuneyard_wire.one_line import escape

logger = logging.getLogger(__name__)

LOGGERS = ("flows", "tasks", "sft", "jobs")  # prefect.yaml makes Prefect show their lines in its UI
LOG_SECONDS, LOG_TRIES = 0.01, 500  # a stop that arrives while a line is logged is retried so soon and so often
STORE_SECONDS = {"completed": 10.0, "interrupted": 60.0}  # for the last checkpoint to reach the store
STEP_METRICS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch")


def show_log_lines() -> None:
    """Set our loggers to INFO: they inherit the root's level, which would hide lines from Prefect's UI."""
    keep_lines_whole()
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


class Journal:
    """One job's records. A plain class, as Prefect copies dataclasses that are passed to it."""

    def __init__(self, settings: Settings, run_id: UUID, spec: JobSpec) -> None:
        if settings.database_url is None or settings.mlflow_tracking_uri is None:
            raise StackError("TUNEYARD_DATABASE_URL and MLFLOW_TRACKING_URI must be set where jobs run")
        self.settings = settings
        self.attempt = Attempt.begin(settings.database_url, run_id)
        self.job_id = self.attempt.job_id
        self.spec = self._settle_spec(spec)
        self._progress = ProgressWriter(self.attempt.writing, self.job_id)
        self._phase = ""
        self.mlflow: MlflowTracker
        self.trackers: list[Tracker] = []
        self.sender: CheckpointSender | None = None

    @property
    def folder(self) -> Path:
        """The job's folder. Raises InvalidConfig if it is outside the allowed roots."""
        return job_folder(self.settings, self.spec.config, self.job_id)

    def _settle_spec(self, spec: JobSpec) -> JobSpec:
        """The job's parameters at its first attempt; later edits in Prefect are ignored."""
        context = FlowRunContext.get()
        run = context.flow_run.model_dump(mode="json") if context and context.flow_run else {}
        run["start_time"] = run.get("start_time") or datetime.now(UTC).isoformat()
        with self.attempt.writing() as connection:
            kept = read_spec(keep_run(connection, self.job_id, run).get("parameters")).spec
            if self.attempt.number > 1 and kept is not None and kept != spec:
                logger.warning("This run's parameters were edited after its job had started; the edit has no effect")
                spec = kept
            keep_run(connection, self.job_id, run, spec.to_parameters())
        return spec

    def open_trackers(self, dataset: AnyDataset) -> None:
        """Start the tracking runs and record the dataset."""
        config = self.spec.config
        run_name = escape(config.run_name or "") or f"{self.spec.registered_name}-{str(self.job_id)[:8]}"
        self.mlflow = MlflowTracker(self.settings, str(self.job_id), run_name, config)
        self.trackers.append(self.mlflow)
        self.mlflow.log_config()
        if self.spec.tracking_backend == "wandb":
            self.trackers.append(WandbTracker(self.folder, str(self.job_id), run_name, config))
        for tracker in self.trackers:
            tracker.log_dataset(dataset)
        self.write(tracking_url=self.trackers[-1].url)
        logger.info("Metrics: %s", self.trackers[-1].url)

    def write(self, **fields: Any) -> None:
        """Set columns of the job's report."""
        with self.attempt.writing() as connection:
            set_report(connection, self.job_id, **fields)

    def enter(self, phase: str) -> None:
        """Record which step of the job has started."""
        self._phase = phase
        self.write(phase=phase)
        self.record("phase", {"phase": phase})

    def record(self, event: str, data: dict[str, Any]) -> None:
        """Add an event for clients that follow the job."""
        with self.attempt.writing() as connection:
            write_event(connection, self.job_id, event, data)

    def close(self, outcome: str) -> None:
        """Record that the process ends, and how."""
        if self.sender:
            self.sender.close(STORE_SECONDS.get(outcome, 0.0))
        for tracker in self.trackers:
            tracker.finish(outcome == "completed")
        self._progress.flush()
        self.record("end", {"outcome": outcome})

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record the values of one step in all tracking backends."""
        for tracker in self.trackers:
            tracker.log_metrics(metrics, step)

    def on_event(self, event: str, details: dict[str, Any]) -> None:
        """Handle an event of the training session."""
        if event == "step":
            self._progress(details)
            self.log_metrics(
                {key: details[key] for key in STEP_METRICS if details.get(key) is not None}, details["step"]
            )
            return
        if event == "checkpoint":
            details = details | {"host": HOST}
        if event in ("begin", "epoch", "evaluate", "checkpoint"):
            with self.attempt.writing() as connection:
                write_event(connection, self.job_id, event, details)
                _announce(connection, self.job_id, self.spec, event, details)
        if event == "evaluate" and self._phase == "training":  # the evaluations before and after log their own
            self.log_metrics(pick_losses(details), details["step"])
        if event == "end":
            self._progress.finish()
        if event == "checkpoint":
            logger.info("Checkpoint at step %s", details["step"])
            if self.sender:
                self.sender.add(Path(details["path"]))

    def on_stored(self, step: int, sent: int, seconds: float) -> None:
        """Record that a checkpoint is in the store, with the bytes that were sent for it."""
        self.record("stored", {"step": step, "bytes": sent, "seconds": round(seconds, 3)})
        logger.info("Checkpoint of step %s is in the store (%.1f MB sent in %.1f s)", step, sent / 1e6, seconds)


@contextmanager
def open_journal(settings: Settings, run_id: UUID, spec: JobSpec) -> Iterator[Journal]:
    """Open a journal for one attempt at a run's job; if the job has ended, the process ends at once.

    An error of the job is recorded and raised. After a stop or an error that is worth a retry the attempt ends without
    a report to Prefect (`Abort`): the watchdog sees that the process is gone and restarts the job.
    """
    show_log_lines()
    try:
        journal = Journal(settings, run_id, spec)
        with Heartbeat(journal.attempt), _stopped_once(), _ending(journal):
            journal.write(error=None, error_code=None)
            journal.enter("starting")
            with journal.attempt.writing() as connection:
                _announce(connection, journal.job_id, journal.spec, "started", {})
            yield journal
    except Superseded as error:
        leave(error)


@contextmanager
def _stopped_once() -> Iterator[None]:
    """Ignore all SIGTERMs after the first one, which must not interrupt saving the last step.

    A worker that is stopped sends one, and the kernel another one when the worker kills the keeper.
    """
    former = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(former):
        yield
        return

    tries = iter(range(LOG_TRIES))

    def stop(number: int, frame: FrameType | None) -> None:
        if _is_logging(frame) and next(tries, None) is not None:
            threading.Timer(LOG_SECONDS, os.kill, (os.getpid(), number)).start()
            return
        signal.signal(number, signal.SIG_IGN)
        former(number, frame)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, former)


def _is_logging(frame: FrameType | None) -> bool:
    """Whether the frame or one of its callers is writing a log line.

    An exception just after logging has taken its lock, before the `try` that releases it, leaves it locked: every
    other thread that logs, and the process's exit, would wait for ever.
    """
    while frame is not None:
        if frame.f_code.co_filename == logging.__file__:
            return True
        frame = frame.f_back
    return False


@contextmanager
def _ending(journal: Journal) -> Iterator[None]:
    """Record how the attempt ends."""
    try:
        yield
        journal.close("completed")
        journal.attempt.end(JobStatus.COMPLETED)
    except Superseded:
        raise
    except Exception as error:
        cause = explain(error)
        message = hide_passwords(cause.message)
        if leave_to_others(journal.settings, journal.attempt, cause):
            _release(journal, is_interrupted=True, message=f"{HOST} lacks the job's model: {message}")
            time.sleep(HOLD_SECONDS)
            raise Abort(message) from error
        if cause.is_worth_retrying:
            logger.warning("This attempt is lost: %s: %s", cause.code, message, exc_info=is_debugging() and error)
            _release(journal, cause=cause.code, message=message)
            raise Abort(message) from error
        journal.close("failed")
        journal.attempt.end(JobStatus.FAILED, message, cause.code)
        raise
    except BaseException as error:  # a signal handler raised
        _release(journal, is_interrupted=True)
        raise Abort("stopped") from error


def _release(journal: Journal, **why: Any) -> None:
    """Record the end of an attempt that does not end its job; if that fails, the watchdog detects it."""
    try:
        journal.close("interrupted")
        journal.attempt.release(**why)
    except (StackError, SQLAlchemyError) as error:
        logger.warning("The end of this attempt could not be recorded (%s)", type(error).__name__)


def _announce(connection: Connection, job_id: UUID, spec: JobSpec, event: str, details: dict[str, Any]) -> None:
    """Queue the job's webhook for this event, once for all attempts at the job."""
    if spec.webhook_url and event in (spec.webhook_events or ()):
        put_delivery(connection, job_id, spec.webhook_url, build_event_payload(job_id, event, details))
