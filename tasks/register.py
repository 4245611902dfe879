"""Registers a trained adapter with its provenance in MLflow's model registry."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task
from prefect.cache_policies import NO_CACHE

from jobs.errors import RegistryRefused
from jobs.mlflow_server import MlflowServer
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.errors import ModelNotFound
from sft.training.model_card import MEASURES, Provenance
from tasks.comparison import Version, compare, digest_held_out, read_version
from tasks.dataset_mix import AnyDataset, DatasetMix
from tasks.journal import Journal
from tasks.merge import Merged, merge
from tasks.mlflow_client import open_mlflow_client
from tasks.outage import MOST_RACES, keep_trying
from tasks.serving import CHECKING, check_serving, describe, find_obstacle
from tasks.tracking import JOB_TAG, MlflowTracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from sft.data.mixing import AnyRows
    from sft.devices.launcher import DistributedSession
    from sft.training.session import TrainingSession

logger = logging.getLogger(__name__)

ARTIFACT_PATH = "adapter"
SPEC_TAG = "tuneyard.spec"
TAG_CHARACTERS = 1000


class RegisteredAdapter(NamedTuple):
    """A version in the registry; `models:/<name>/<version>` and `models:/<name>/latest` find its files."""

    name: str
    version: str
    source: str
    tags: dict[str, str]

    def to_spec(self) -> JobSpec:
        """The job that created it."""
        return JobSpec.model_validate_json(self.tags[SPEC_TAG])


@task(name="Register", task_run_name="Register", cache_policy=NO_CACHE)
def register(
    session: "TrainingSession | DistributedSession",
    journal: Journal,
    dataset: AnyDataset,
    rows: "AnyRows",
    before: dict[str, Any],
    training: dict[str, Any],
    after: dict[str, Any],
) -> dict[str, Any]:
    """Save the adapter, check it, register it as a version, merge it if that is asked for, and write the job's result.

    The adapter comes first: a merge that fails, or is killed on each attempt, leaves the job its registered adapter.
    """
    obstacle = find_obstacle(session, journal)
    journal.enter("registering" if obstacle else CHECKING)
    config = journal.spec.config
    measured = {"base_eval_loss": before.get("eval_loss")} | training | after
    provenance = describe_provenance(dataset, measured)
    adapter_dir = session.save_adapter(journal.folder / "adapter", provenance)
    checked = check_serving(session, journal, dataset, rows, adapter_dir, obstacle)
    facts = {
        "base_model": config.base_model,
        "base_eval_loss": before.get("eval_loss"),
        "eval_loss": after.get("eval_loss"),
        "train_loss": training["train_loss"],
    }
    name = journal.spec.registered_name
    held_out = digest_held_out(rows)
    tags = facts | {SPEC_TAG: journal.spec.model_dump_json(), "held_out": held_out or ""}
    tags |= {"serving_check": checked.status, "serving_check_details": describe(checked)[:TAG_CHARACTERS]}
    with journal.attempt.publishing():
        adapter = register_adapter(journal.mlflow, str(journal.job_id), name, adapter_dir, dataset, tags)
    logger.info("Registered models:/%s/%s", adapter.name, adapter.version)
    is_merged = config.save_merged_model and config.use_lora
    merged = merge(session, journal, adapter_dir, provenance) if is_merged else Merged(None, None)
    previous = find_previous(journal.mlflow, adapter)
    comparison = compare(Version(adapter.version, facts["eval_loss"], held_out), previous)
    if comparison["comparison"]:
        logger.log(logging.WARNING if comparison["is_worse"] else logging.INFO, "%s", comparison["comparison"])
    worse = [comparison["comparison"]] if comparison["is_worse"] else []
    metrics = training | after
    result = facts | {
        "adapter_path": str(adapter_dir),
        "merged_path": merged.folder and str(merged.folder),
        "merge_error": merged.error,
        "output_dir": str(journal.folder),
        "model_name": adapter.name,
        "model_version": adapter.version,
        "dataset": str(dataset.reference),
        "dataset_commit": dataset.commit,
        "dataset_md5": dataset.md5,
        **comparison,
        "rows": rows.describe_rows(),
        "warnings": [*rows.warnings, *session.warnings, *checked.warnings, *merged.warnings, *worse],
        "serving_check": checked._asdict(),
        "stopped_early": metrics.pop("stopped_early", False),
        "adapted": session.adaptation,
        "metrics": metrics,
    }
    if isinstance(dataset, DatasetMix):
        result["sources"] = describe_sources(dataset, rows, before, after)
    journal.write(phase="done", result=result, output_path=str(adapter_dir))
    return result


def describe_provenance(dataset: AnyDataset, measured: dict[str, Any]) -> Provenance:
    """Provenance for the model card: data and measurements."""
    return Provenance(
        dataset=str(dataset.reference),
        dataset_commit=dataset.commit,
        dataset_md5=dataset.md5,
        hub_dataset=dataset.name if dataset.source == "hub" else None,
        measures={name: measured[name] for name in MEASURES if name in measured},
    )


def describe_sources(
    dataset: DatasetMix, rows: "AnyRows", before: dict[str, Any], after: dict[str, Any]
) -> list[dict[str, Any]]:
    """Each dataset of a mix: its exact version, what became of its rows, and the loss on those it held out."""
    parts = rows.describe_parts()
    is_one = sum(part["eval"] is not None for part in parts) == 1

    def find_loss(metrics: dict[str, Any], part: dict[str, Any]) -> float | None:
        name = "eval_loss" if is_one else f"eval_loss/{part['label']}"
        return metrics.get(name) if part["eval"] else None

    return [
        {
            **part,
            "commit": version.commit,
            "md5": version.md5,
            "base_eval_loss": find_loss(before, part),
            "eval_loss": find_loss(after, part),
        }
        for version, part in zip(dataset.versions, parts, strict=True)
    ]


def register_adapter(
    tracker: MlflowTracker, job_id: str, name: str, adapter_dir: Path, dataset: AnyDataset, tags: dict[str, Any]
) -> RegisteredAdapter:
    """Log the adapter's files to the run and register them as a version of `name`, once per job (idempotent).

    Args:
        tags: Further tags of the version, such as `base_model` and `eval_loss`.

    Raises:
        RegistryUnavailable: MLflow stayed down.
        RegistryRefused: MLflow refused the version.
    """
    tags = {JOB_TAG: job_id, **dataset.lineage(), **{key: str(value) for key, value in tags.items()}}
    what = "registering the adapter"
    for _ in range(MOST_RACES):
        if adapter := tracker.on_run(lambda: _register_once(tracker, name, adapter_dir, tags), what):
            return adapter
        logger.warning("%s was deleted in MLflow's registry while it was created; creating it again", name)
    raise RegistryRefused(f"the registered model {name!r} was deleted {MOST_RACES} times while {what}; submit it again")


def _register_once(
    tracker: MlflowTracker, name: str, adapter_dir: Path, tags: dict[str, str]
) -> RegisteredAdapter | None:
    """Try to register; None if the model was deleted meanwhile. Finds the version of an earlier try."""
    from mlflow.exceptions import MlflowException  # takes seconds to import, so only here

    client = tracker.client
    if found := _find_versions(client, tags[JOB_TAG]):
        return _registered(found[0])
    client.log_artifacts(tracker.run_id, str(adapter_dir), ARTIFACT_PATH)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{tracker.run.info.artifact_uri}/{ARTIFACT_PATH}"
    try:
        client.create_model_version(name, source=source, run_id=tracker.run_id, tags=tags, await_creation_for=0)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" and _is_gone(client, name):
            return None
        raise
    # A server that was suspended may carry out an abandoned try, while or after this one checked.
    made = _find_versions(client, tags[JOB_TAG])
    for version in made[1:]:
        client.delete_model_version(version.name, version.version)
    return _registered(made[0]) if made else None


def _is_gone(client: "MlflowClient", name: str) -> bool:
    return not client.search_registered_models(f"name = '{name}'", max_results=1)


def _find_versions(client: "MlflowClient", job_id: str) -> "list[ModelVersion]":
    """The versions that a job registered, oldest first, even if the model was renamed since."""
    return [*client.search_model_versions(f"tags.`{JOB_TAG}` = '{job_id}'", order_by=["version_number ASC"])]


def find_previous(tracker: MlflowTracker, adapter: RegisteredAdapter) -> Version | None:
    """Find the newest version before this one. Raises RegistryUnavailable."""
    found = keep_trying(
        lambda: tracker.client.search_model_versions(f"name = '{adapter.name}'", order_by=["version_number DESC"]),
        "looking up the previous version",
    )
    earlier = (version for version in found if int(version.version) < int(adapter.version))
    before = next(earlier, None)
    return read_version(str(before.version), dict(before.tags)) if before else None


def find_latest(settings: Settings, name: str) -> RegisteredAdapter | None:
    """Find the newest version of an adapter; None without any."""
    client = open_mlflow_client(settings)
    versions = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"], max_results=1)
    return _registered(versions[0]) if versions else None


def list_adapters(settings: Settings) -> list[str]:
    """List the adapters' names in the registry. Raises RegistryUnavailable if MLflow stays down."""
    client = open_mlflow_client(settings)

    def read() -> list[str]:
        names: list[str] = []
        token: str | None = None
        while True:
            page = client.search_registered_models(page_token=token)
            names += [model.name for model in page]
            token = page.token or None
            if token is None:
                return names

    return keep_trying(read, "listing adapters")


def fetch_adapter(settings: Settings, reference: str, folder: Path) -> Path:
    """Download the adapter `models:/<name>/<version>` into `folder`; returns where its files are.

    The version is looked up here, as MLflow asks the registry of its environment for addresses of this form.

    Raises:
        ModelNotFound: when the registry has no such version.
        RegistryUnavailable: MLflow stayed down.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    client = open_mlflow_client(settings)

    def download() -> Path:
        source = client.get_model_version_download_uri(*get_model_name_and_version(client, reference))
        return Path(download_artifacts(source, dst_path=str(folder), tracking_uri=client.tracking_uri))

    try:
        return keep_trying(download, "downloading the adapter in adapter_path")
    except MlflowException as error:
        raise ModelNotFound(
            f"adapter_path {reference!r} is not in the registry at {MlflowServer.find(settings).url}: {error}"
        ) from error


def _registered(version: "ModelVersion") -> RegisteredAdapter:
    return RegisteredAdapter(version.name, str(version.version), version.source, dict(version.tags))
