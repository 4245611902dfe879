"""Finds the base model and loads it together with the adapter to train."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from jobs.folders import output_folder
from jobs.settings import Settings
from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.errors import ModelNotFound, StackError
from sft.files.places import find_way_out, follow
from sft.imports import without_collecting
from tasks.journal import Journal
from tasks.limits import building_model
from tasks.model_store import locate_model, send_model
from tasks.register import fetch_adapter
from tasks.resuming import check_store, prepare_checkpoints

if TYPE_CHECKING:
    from sft.devices.launcher import DistributedSession
    from sft.training.session import TrainingSession

logger = logging.getLogger(__name__)

REGISTERED = re.compile(r"models:/[A-Za-z0-9][A-Za-z0-9._-]*[/@][A-Za-z0-9][A-Za-z0-9._-]*")


@task(name="Find base model", task_run_name="Find base model {config.base_model}", cache_policy=NO_CACHE)
def find_base_model(config: SFTConfig, journal: Journal) -> Path:
    """Find the base model's files, and put them into the store. Raises as `locate_model` does, and StoreRefused."""
    settings = journal.settings
    check_store(settings)
    path = locate_model(config.base_model, settings, journal.job_id)
    logger.info("Base model %s: %s", config.base_model, path)
    send_model(config.base_model, path, settings, journal.job_id, journal.attempt.publishing)
    return path


@task(name="Find start adapter", task_run_name="Find start adapter", cache_policy=NO_CACHE)
def find_start_adapter(config: SFTConfig, journal: Journal) -> Path | None:
    """Find the folder of the adapter in adapter_path; None for a new adapter. Raises as `locate_adapter` does."""
    if config.adapter_path is None:
        return None
    return locate_adapter(config.adapter_path, journal.settings, journal.folder)


def locate_adapter(reference: str, settings: Settings, folder: Path) -> Path:
    """Find the folder of an adapter; one in the registry is downloaded to `start` in `folder`.

    Raises:
        ModelNotFound: it is neither in the registry nor a folder with an adapter below the output or model root.
        StackError: it is in the registry, whose address is not known.
    """
    if reference.startswith("models:"):
        if not REGISTERED.fullmatch(reference):
            raise ModelNotFound(f"adapter_path {reference!r} is not of the form models:/NAME/VERSION, or /latest")
        if settings.mlflow_tracking_uri is None:
            raise StackError(f"adapter_path {reference!r} is in MLflow's registry; set MLFLOW_TRACKING_URI")
        return fetch_adapter(settings, reference, folder / "start")
    roots = (settings.output_root, settings.model_root)
    for root in roots:
        further = settings.allowed_model_roots if root == settings.model_root else ()
        found = follow(reference, root, further)
        if found and (found / "adapter_config.json").is_file():
            if way_out := find_way_out(found, (root, *further)):
                raise ModelNotFound(
                    f"adapter_path {reference!r}: {way_out} leads out of {root}; put the file itself there"
                )
            return found
    looked = " and ".join(str(root) for root in roots)
    raise ModelNotFound(f"adapter_path {reference!r} is not a folder with an adapter_config.json under {looked}")


@task(name="Load model", task_run_name="Load model", cache_policy=NO_CACHE)
def load_session(
    config: SFTConfig, rows: AnyRows, model: Path, start: Path | None, journal: Journal
) -> "TrainingSession | DistributedSession":
    """Load the base model with its adapter, ready to train, on the job's number of devices."""
    journal.enter("loading model")
    with without_collecting():
        # Here, as torch takes seconds to import, which a cancelled or failing job should not cost.
        from sft.devices.launcher import open_session
        from sft.training.precision import fix_precision
    if start is not None:
        config = config.model_copy(update={"adapter_path": str(start)})
    checkpoints = output_folder(journal.settings, config.checkpoint_dir) / str(journal.job_id)
    checkpoint_dir = checkpoints if config.checkpoint_dir else None
    settings = journal.settings
    directory = checkpoint_dir or journal.folder / "checkpoints"
    prepare_checkpoints(journal, directory, bool(config.early_stopping_patience))
    config = fix_precision(config, settings.home, settings.dtype, journal.folder, directory)
    with building_model(settings):
        return open_session(
            config, rows, model, journal.folder, journal.on_event, checkpoint_dir, journal.attempt.publishing
        )
