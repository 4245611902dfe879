"""`Journal`: what a running job says of itself, to the REST interfaces and to the tracking backends."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from jobs.events import write_event
from jobs.folders import job_folder
from jobs.log_lines import keep_lines_whole
from jobs.progress import ProgressWriter, write_report
from jobs.redaction import hide_passwords
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import engine_for
from sft.errors import StackError, TuneyardError
from tasks.dataset import DatasetVersion
from tasks.tracking import MlflowTracker, Tracker, WandbTracker

logger = logging.getLogger(__name__)

LOGGERS = ("flows", "tasks", "sft", "jobs")  # prefect.yaml lets Prefect show their lines in its UI
STEP_METRICS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch")


def let_log_lines_through() -> None:
    """Our loggers inherit the root's level, which hides what a person wants to read in Prefect's UI."""
    keep_lines_whole()
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


class Journal:
    """One job's records. A plain class, since Prefect copies dataclasses it is given."""

    def __init__(self, settings: Settings, job_id: UUID, spec: JobSpec) -> None:
        if settings.database_url is None or settings.mlflow_tracking_uri is None:
            raise StackError("TUNEYARD_DATABASE_URL and MLFLOW_TRACKING_URI must be set where jobs run")
        self.settings = settings
        self.mlflow_tracking_uri = settings.mlflow_tracking_uri
        self.job_id = job_id
        self.spec = spec
        self.folder: Path = job_folder(settings, spec.config, job_id)
        self.engine = engine_for(settings.database_url)
        self._progress = ProgressWriter(self.engine, job_id)
        self._phase = ""
        self.mlflow: MlflowTracker
        self.trackers: list[Tracker] = []

    def open_trackers(self, dataset: DatasetVersion) -> None:
        """Start the tracking runs and record which data the job learns from."""
        config = self.spec.config
        run_name = config.run_name or f"{self.spec.registered_name}-{str(self.job_id)[:8]}"
        self.mlflow = MlflowTracker(self.mlflow_tracking_uri, str(self.job_id), run_name, config)
        self.trackers.append(self.mlflow)
        if self.spec.tracking_backend == "wandb":
            self.trackers.append(WandbTracker(self.folder, str(self.job_id), run_name, config))
        for tracker in self.trackers:
            tracker.log_dataset(dataset)
        self.write(tracking_url=self.trackers[-1].url)
        logger.info("Metrics: %s", self.trackers[-1].url)

    def write(self, **fields: Any) -> None:
        """Set columns of the job's report."""
        write_report(self.engine, self.job_id, **fields)

    def enter(self, phase: str) -> None:
        """Say which step of the job has begun."""
        self._phase = phase
        self.write(phase=phase)
        self.record("phase", {"phase": phase})

    def record(self, event: str, data: dict[str, Any]) -> None:
        """Add an event for those who follow the job."""
        with self.engine.begin() as connection:
            write_event(connection, self.job_id, event, data)

    def close(self, outcome: str) -> None:
        """Say that the process ends, and how; Prefect decides what becomes of the job."""
        self._progress.flush()
        self.record("end", {"outcome": outcome})

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record values of one step everywhere."""
        for tracker in self.trackers:
            tracker.log_metrics(metrics, step)

    def on_event(self, event: str, details: dict[str, Any]) -> None:
        """Take an event of the training session."""
        if event == "step":
            self._progress(details)
            self.log_metrics(
                {key: details[key] for key in STEP_METRICS if details.get(key) is not None}, details["step"]
            )
            return
        if event in ("begin", "epoch", "evaluate", "checkpoint"):
            self.record(event, details)
        if event == "evaluate" and self._phase == "training":  # the evaluations before and after log their own
            self.log_metrics({"eval_loss": details["eval_loss"]}, details["step"])
        if event == "end":
            self._progress.finish()
        if event == "checkpoint":
            logger.info("Checkpoint at step %s", details["step"])


@contextmanager
def open_journal(settings: Settings, job_id: UUID, spec: JobSpec) -> Iterator[Journal]:
    """A journal for the time of a job; what the job raises is recorded and goes on."""
    let_log_lines_through()
    journal = Journal(settings, job_id, spec)
    journal.write(error=None, error_code=None)
    journal.enter("starting")
    outcome = "interrupted"
    try:
        yield journal
        outcome = "completed"
    except TuneyardError as error:
        outcome = "failed"
        journal.write(error=str(error), error_code=error.code)
        raise
    except Exception as error:
        outcome = "failed"
        journal.write(error=hide_passwords(f"{type(error).__name__}: {error}"), error_code="internal_error")
        raise
    finally:
        for tracker in journal.trackers:
            tracker.finish(outcome == "completed")
        journal.close(outcome)
