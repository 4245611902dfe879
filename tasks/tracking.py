"""Where a run's parameters, metrics and lineage are shown: MLflow always, Weights & Biases when asked for."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Protocol

from sft.config import SFTConfig
from tasks.dataset import DatasetVersion
from tasks.outage import MetricSender, keep_trying

logger = logging.getLogger(__name__)

EXPERIMENT = "tuneyard"
JOB_TAG = "tuneyard.job_id"
# How long the end of a job waits for MLflow. One that failed or was stopped must make way for the next.
LAST_SECONDS, LAST_SECONDS_OF_FAILED = 30.0, 3.0


class Tracker(Protocol):
    """One place that shows a run."""

    url: str

    def log_dataset(self, dataset: DatasetVersion) -> None:
        """Record which data the run learns from."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record values of one optimizer step."""

    def finish(self, succeeded: bool) -> None:
        """Close the run."""


class MlflowTracker:
    """A run on an MLflow server. A job that starts again goes on in the run it had.

    Raises RegistryUnavailable when MLflow stays away as the run begins; from then on training waits for nothing here.
    """

    def __init__(self, tracking_uri: str, job_id: str, run_name: str, config: SFTConfig) -> None:
        from mlflow import MlflowClient  # seconds to import, so only where a run is tracked

        self.client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
        self.run = keep_trying(lambda: self._open_run(job_id, run_name, config), "a run is opened for the metrics")
        self.run_id = self.run.info.run_id
        self.url = f"{tracking_uri.rstrip('/')}/#/experiments/{self.run.info.experiment_id}/runs/{self.run_id}"
        self._sender = MetricSender(lambda points: self.client.log_batch(self.run_id, metrics=points))

    def _open_run(self, job_id: str, run_name: str, config: SFTConfig) -> Any:
        """The job's run, made if need be, and whole however much of it an earlier try has made."""
        from mlflow.entities import Param

        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._create_experiment()
        earlier = self.client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{job_id}'", max_results=1)
        tags = {JOB_TAG: job_id}
        run = earlier[0] if earlier else self.client.create_run(experiment_id, run_name=run_name, tags=tags)
        if earlier:
            self.client.update_run(run.info.run_id, status="RUNNING")
        if not run.data.params:
            params = [Param(key, str(value)) for key, value in config.to_dict().items() if value is not None]
            self.client.log_batch(run.info.run_id, params=params)
        return run

    def _create_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.create_experiment(EXPERIMENT))
        except MlflowException:  # another job made it in the meantime
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def log_dataset(self, dataset: DatasetVersion) -> None:
        """Lineage as an MLflow dataset input: name, commit and md5."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = {"url": str(dataset.url), "revision": dataset.revision, "commit": dataset.commit}
        entity = Dataset(
            name=dataset.name,
            digest=dataset.md5[:36],
            source_type=dataset.source,
            source=json.dumps(source),
            profile=json.dumps({"num_rows": dataset.rows}),
        )
        tags = {"mlflow.data.context": "training", "commit": dataset.commit or "", "md5": dataset.md5}
        inputs = [DatasetInput(entity, [InputTag(key, value) for key, value in tags.items()])]
        keep_trying(lambda: self.client.log_inputs(self.run_id, inputs), "the dataset is put down")

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Sent from a thread, together, once a second."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._sender.put([Metric(key, float(value), now_ms, step) for key, value in metrics.items()])

    def finish(self, succeeded: bool) -> None:
        """Send what is left and close the run, for as long as the end of a job may wait."""
        status = "FINISHED" if succeeded else "FAILED"
        seconds = LAST_SECONDS if succeeded else LAST_SECONDS_OF_FAILED
        self._sender.close(lambda: self.client.set_terminated(self.run_id, status), seconds)


class WandbTracker:
    """A run on Weights & Biases; offline files in the job's folder when there is no API key."""

    def __init__(self, folder: Path, job_id: str, run_name: str, config: SFTConfig) -> None:
        import wandb

        offline = not has_wandb_key()
        if offline:
            logger.info("No Weights & Biases API key: the run is written offline to %s (`wandb sync` sends it)", folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.wandb_project or EXPERIMENT,
            entity=config.wandb_entity,
            name=config.wandb_run_name or run_name,
            id=job_id,
            resume="never" if offline else "allow",
            mode="offline" if offline else "online",
            dir=str(folder),
            config=config.to_dict(),
            settings=wandb.Settings(silent=True, x_disable_stats=True),
        )
        self._run.define_metric("*", step_metric="step")
        self.url = self._run.url or Path(self._run.dir).parent.as_uri()

    def log_dataset(self, dataset: DatasetVersion) -> None:
        """Lineage in the run's config."""
        lineage = {"name": dataset.name, "revision": dataset.revision, "commit": dataset.commit, "md5": dataset.md5}
        self._run.config.update({"dataset": lineage}, allow_val_change=True)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Values of one optimizer step. W&B's own steps may only grow, and the start is evaluated last."""
        self._run.log({**metrics, "step": step})

    def finish(self, succeeded: bool) -> None:
        """Close the run."""
        self._run.finish(exit_code=0 if succeeded else 1)


def has_wandb_key() -> bool:
    """Whether a key is in the environment or where `wandb login` leaves it."""
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "dryrun"):
        return False
    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
