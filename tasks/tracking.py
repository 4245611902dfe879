"""Logs a run's parameters, metrics and lineage to MLflow, and to Weights & Biases if configured."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from jobs.errors import RegistryRefused
from jobs.mlflow_server import MlflowServer
from jobs.settings import Settings
from sft.config import SFTConfig
from tasks.causes import is_mlflow_away, is_store_refusal
from tasks.dataset_mix import AnyDataset, DatasetMix
from tasks.dataset_version import DatasetVersion
from tasks.mlflow_client import open_mlflow_client
from tasks.outage import MetricSender, keep_trying
from tuneyard_wire.one_line import escape

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Experiment, Run

logger = logging.getLogger(__name__)

EXPERIMENT = "tuneyard"
JOB_TAG = "tuneyard.job_id"
KIND_TAG, TRAINING_KIND = "mlflow.experimentKind", "custom_model_development"  # the default kind shows LLM traces
CONTEXT_TAG = "mlflow.data.context"
CONFIG_FILE = "config.json"
DELETED = "deleted"  # MLflow's lifecycle stage of what was deleted in its UI and can be restored
T = TypeVar("T")
# How long the end of a job waits for MLflow. A failed or stopped job must free its slot soon.
LAST_SECONDS, LAST_SECONDS_OF_FAILED = 30.0, 3.0


class Tracker(Protocol):
    """A tracking backend."""

    @property
    def url(self) -> str:
        """The run's page."""

    def log_dataset(self, dataset: AnyDataset) -> None:
        """Record the dataset versions of the run."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record values of one optimizer step."""

    def finish(self, succeeded: bool) -> None:
        """Close the run."""


class MlflowTracker:
    """A run on an MLflow server. A restarted job continues its run.

    When the run starts and whenever MLflow refuses a call, experiment and run are restored if they were deleted,
    and created again if they were purged.

    Raises RegistryUnavailable if MLflow stays down at the start, RegistryRefused if it refuses the run; afterwards
    training never waits for MLflow.
    """

    def __init__(self, settings: Settings, job_id: str, run_name: str, config: SFTConfig) -> None:
        self.client = open_mlflow_client(settings)
        self._shown_uri = MlflowServer.find(settings).url
        self._job_id = job_id
        self._run_name = run_name
        self._config = config
        self.run: Run = self._insist(self._open_run_again, "opening a run for the metrics")
        self._sender = MetricSender(lambda points: self._revived(lambda: self._log(points)))

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; a new one after the run was purged and created again."""
        return str(self.run.info.run_id)

    @property
    def url(self) -> str:
        """The run's page."""
        return f"{self._shown_uri}/#/experiments/{self.run.info.experiment_id}/runs/{self.run_id}"

    def _open_run_again(self) -> "Run":
        """`_open_run`, once more if MLflow refuses it: the experiment may be deleted between two of its calls."""
        from mlflow.exceptions import MlflowException

        try:
            return self._open_run()
        except MlflowException as error:
            if is_mlflow_away(error):
                raise
            return self._open_run()

    def _open_run(self) -> "Run":
        """Open the job's run, created if needed; completes what an earlier try has left incomplete."""
        from mlflow.entities import Param, ViewType

        experiment_id = self._open_experiment()
        is_mine = f"tags.`{JOB_TAG}` = '{self._job_id}'"
        earlier = self.client.search_runs([experiment_id], is_mine, ViewType.ALL, max_results=1)
        tags = {JOB_TAG: self._job_id}
        run = earlier[0] if earlier else self.client.create_run(experiment_id, run_name=self._run_name, tags=tags)
        if run.info.lifecycle_stage == DELETED:
            self.client.restore_run(run.info.run_id)
            logger.warning("Restored this job's MLflow run %s, which was deleted", run.info.run_id)
        if earlier:
            self.client.update_run(run.info.run_id, status="RUNNING")
        if not run.data.params:
            params = [Param(key, str(value)) for key, value in self._config.to_dict().items() if value is not None]
            self.client.log_batch(run.info.run_id, params=params)
        return run

    def _open_experiment(self) -> str:
        """The experiment's id: created if missing, restored if deleted, with the kind for training."""
        from mlflow.exceptions import MlflowException

        experiment: Experiment | None = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                return str(self.client.create_experiment(EXPERIMENT, tags={KIND_TAG: TRAINING_KIND}))
            except MlflowException:  # another job created it meanwhile
                experiment = self.client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == DELETED:
            try:
                self.client.restore_experiment(experiment.experiment_id)
            except MlflowException:  # another job restored it meanwhile
                if self.client.get_experiment(experiment.experiment_id).lifecycle_stage == DELETED:
                    raise
            logger.warning("Restored MLflow's experiment %s, which was deleted", EXPERIMENT)
        if KIND_TAG not in experiment.tags:  # an older one; a kind chosen in the UI stays
            self.client.set_experiment_tag(experiment.experiment_id, KIND_TAG, TRAINING_KIND)
        return str(experiment.experiment_id)

    def _revived(self, act: Callable[[], T]) -> T:
        """Call `act`; if MLflow refuses it, restore the run and call it once more."""
        from mlflow.exceptions import MlflowException

        try:
            return act()
        except MlflowException as error:
            if is_mlflow_away(error):
                raise
            self.run = self._open_run_again()
            return act()

    def _insist(self, act: Callable[[], T], what: str) -> T:
        """`keep_trying`. Raises RegistryRefused, with MLflow's own message, for what MLflow refuses."""
        from mlflow.exceptions import MlflowException

        try:
            return keep_trying(act, what)
        except MlflowException as error:
            raise refusal(error, what) from error
        except Exception as error:
            if not is_store_refusal(error):
                raise
            raise store_refusal(error, what, f"{self.run.info.artifact_uri}") from error

    def on_run(self, act: Callable[[], T], what: str) -> T:
        """Call `act`, which needs the run, restoring the run if needed. Raises RegistryUnavailable, RegistryRefused."""
        return self._insist(lambda: self._revived(act), what)

    def log_dataset(self, dataset: AnyDataset) -> None:
        """Log the lineage as MLflow dataset inputs: name, commit and md5 of each version."""
        inputs = _build_inputs(dataset) if isinstance(dataset, DatasetMix) else [_build_input(dataset)]
        self.on_run(lambda: self.client.log_inputs(self.run_id, inputs), "logging the dataset")

    def log_config(self) -> None:
        """Store the job's configuration with the run: a store that can't be written is found before training.

        Raises RegistryUnavailable, RegistryRefused.
        """
        config = self._config.to_dict()
        self.on_run(lambda: self.client.log_dict(self.run_id, config, CONFIG_FILE), "writing to the artifact store")

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Queue the values; a thread sends them once a second."""
        from mlflow.entities import Metric

        # The start may be evaluated last; with the present time its value would be the last of its series.
        at_ms = int(time.time() * 1000) if step else self.run.info.start_time
        self._sender.put([Metric(key, float(value), at_ms, step) for key, value in metrics.items()])

    def _log(self, points: Any) -> None:
        self.client.log_batch(self.run_id, metrics=points)

    def finish(self, succeeded: bool) -> None:
        """Send the remaining metrics and close the run, within the time that the end of a job may wait."""
        status = "FINISHED" if succeeded else "FAILED"
        seconds = LAST_SECONDS if succeeded else LAST_SECONDS_OF_FAILED
        self._sender.close(lambda: self._revived(lambda: self.client.set_terminated(self.run_id, status)), seconds)


def _build_inputs(mix: DatasetMix) -> "list[DatasetInput]":
    """One of each content: MLflow keeps the first of a name and a digest, and drops the others."""
    tags: dict[tuple[str, str], dict[str, str]] = {}
    for version, weight in zip(mix.sources, mix.weights, strict=True):
        tags.setdefault((version.name, version.md5), {"weight": f"{weight:g}"})
    for version in mix.validation:
        known = tags.setdefault((version.name, version.md5), {})
        known[CONTEXT_TAG] = "training, validation" if "weight" in known else "validation"
    versions = {(version.name, version.md5): version for version in mix.versions}
    return [_build_input(versions[key], **further) for key, further in tags.items()]


def _build_input(version: DatasetVersion, **further: str) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = {"url": str(version.url), "revision": version.revision, "commit": version.commit}
    entity = Dataset(
        name=version.name,
        digest=version.md5[:36],
        source_type=version.source,
        source=json.dumps(source),
        profile=json.dumps({"num_rows": version.rows}),
    )
    tags = {CONTEXT_TAG: "training", "commit": version.commit or "", "md5": version.md5, **further}
    return DatasetInput(entity, [InputTag(key, value) for key, value in tags.items()])


def refusal(error: Exception, what: str) -> RegistryRefused:
    """Translate MLflow's refusal to our error."""
    return RegistryRefused(
        f"MLflow refused {what}: {str(error).splitlines()[0]}; restore what was deleted or renamed there (the "
        f"experiment {EXPERIMENT!r}, the job's run, the registered model), or its permissions, and submit the job again"
    )


def store_refusal(error: Exception, what: str, store: str) -> RegistryRefused:
    """Translate an error of MLflow's artifact store to ours, with what to do about it."""
    scheme = urlsplit(store).scheme
    if isinstance(error, ImportError):
        remedy = f"pip install 'tuneyard[{scheme}]' where jobs run" if scheme == "s3" else "install it where jobs run"
    else:
        remedy = "check the credentials and rights of the machine where jobs run"
    words = next(iter(str(error).splitlines()), "")
    return RegistryRefused(f"MLflow's artifact store {store} can't be used for {what} ({words}); {remedy}")


class WandbTracker:
    """A run on Weights & Biases; without an API key offline files in the job's folder."""

    def __init__(self, folder: Path, job_id: str, run_name: str, config: SFTConfig) -> None:
        import wandb

        offline = not has_wandb_key()
        if offline:
            logger.info("No Weights & Biases API key: the run is written offline to %s (`wandb sync` sends it)", folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.wandb_project or EXPERIMENT,
            entity=config.wandb_entity,
            name=escape(config.wandb_run_name or "") or run_name,
            id=job_id,
            resume="never" if offline else "allow",
            mode="offline" if offline else "online",
            dir=str(folder),
            config=config.to_dict(),
            settings=wandb.Settings(silent=True, x_disable_stats=True),
        )
        self._run.define_metric("*", step_metric="step")
        self.url = self._run.url or Path(self._run.dir).parent.as_uri()

    def log_dataset(self, dataset: AnyDataset) -> None:
        """Log the lineage in the run's config."""
        each = [
            {"name": one.name, "revision": one.revision, "commit": one.commit, "md5": one.md5}
            for one in dataset.versions
        ]
        is_mix = isinstance(dataset, DatasetMix)
        self._run.config.update({"dataset": each if is_mix else each[0]}, allow_val_change=True)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log values of one optimizer step, not as W&B's own step, which must increase: the start is evaluated last."""
        self._run.log({**metrics, "step": step})

    def finish(self, succeeded: bool) -> None:
        """Close the run."""
        self._run.finish(exit_code=0 if succeeded else 1)


def has_wandb_key() -> bool:
    """Whether a key is in the environment or where `wandb login` stores it."""
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "dryrun"):
        return False
    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
