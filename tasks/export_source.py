"""Finds and downloads the adapter to export, with its base model."""

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.settings import Settings
from sft.adapting.adapter_files import SETTINGS, WEIGHTS, find_contradiction
from sft.config import SFTConfig
from sft.errors import ModelNotFound, ModelUnusable
from sft.explanations import find_nearest
from sft.models.model_texts import check_texts, read_object
from sft.models.weights import check_weights, find_weight_damage
from tasks.mlflow_client import open_mlflow_client
from tasks.model_store import locate_model
from tasks.outage import keep_trying
from tasks.register import SPEC_TAG, RegisteredAdapter, list_adapters

PATIENCE_SECONDS = 20.0
REFERENCE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(@v?(?P<version>\d+|latest))?")
SHOWN = 10


@dataclass(frozen=True)
class ExportSource:
    """An adapter in the registry, and its files.

    Attributes:
        folder: of its files.
        config: of the job that trained it, if it was registered by one.
        base_model: what the base model is called.
    """

    adapter: RegisteredAdapter
    folder: Path
    config: SFTConfig | None
    base_model: str
    registry: Settings

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.adapter.name

    def find_base(self) -> Path:
        """Find the base model's folder. Raises ModelNotFound, or ModelUnusable if it is damaged."""
        base = locate_model(self.base_model, self.registry)
        check_weights(base, f"base_model {self.base_model}")
        return base

    @property
    def is_adapter(self) -> bool:
        """Whether these are an adapter's files, not those of a whole model (`use_lora` false)."""
        return (self.folder / SETTINGS).is_file()

    @property
    def settings(self) -> dict[str, Any]:
        """The adapter's settings."""
        return read_object(self.folder / SETTINGS)

    @property
    def title(self) -> str:
        """Name, version and base model, for comments."""
        return f"{self.name} version {self.adapter.version}, trained on {self.base_model}"


def find_adapter(settings: Settings, reference: str) -> RegisteredAdapter:
    """Find `NAME`, `NAME@latest` or `NAME@VERSION` in the registry. Raises ModelNotFound or RegistryUnavailable."""
    parsed = REFERENCE.fullmatch(reference)
    if parsed is None:
        raise ModelNotFound(f"{reference!r} is not of the form NAME@VERSION, NAME@latest or NAME")
    name, wanted = parsed["name"], parsed["version"]
    client = open_mlflow_client(settings)
    search = partial(client.search_model_versions, f"name = '{name}'", order_by=["version_number DESC"])
    found = {str(one.version): one for one in keep_trying(search, f"looking up {name}", PATIENCE_SECONDS)}
    if not found:
        known = list_adapters(settings)
        nearest = find_nearest(name, known)
        hint = f"did you mean {nearest}? " if nearest else ""
        raise ModelNotFound(f"no adapter is named {name}; {hint}registered are {_list(known)}")
    number = next(iter(found)) if wanted in (None, "latest") else str(int(wanted))
    if number not in found:
        raise ModelNotFound(f"{name} has no version {number}; it has {_list(list(found))}")
    return RegisteredAdapter(name, number, found[number].source, dict(found[number].tags))


def fetch(settings: Settings, adapter: RegisteredAdapter, parts: Path) -> ExportSource:
    """Download the files of a version and check that they are whole. Raises ModelUnusable."""
    subject = f"{adapter.name} version {adapter.version}"
    folder = _download(settings, adapter, parts / "download")
    check_texts(folder, subject)
    if (folder / SETTINGS).is_file():
        _check_adapter(folder, subject)
    elif (folder / "config.json").is_file():
        check_weights(folder, subject)
    else:
        raise ModelUnusable(f"{subject} has neither {SETTINGS} nor config.json in the registry: it is no adapter")
    if not (folder / "tokenizer_config.json").is_file():
        raise ModelUnusable(f"{subject} has no tokenizer in the registry; export one that a job registered")
    config = adapter.to_spec().config if SPEC_TAG in adapter.tags else None
    named = config.base_model if config else read_object(folder / SETTINGS).get("base_model_name_or_path")
    return ExportSource(adapter, folder, config, str(named or adapter.tags.get("base_model") or ""), settings)


def _download(settings: Settings, adapter: RegisteredAdapter, folder: Path) -> Path:
    """From the version's own place: with `models:/` MLflow asks the registry of its environment."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    uri = settings.mlflow_tracking_uri
    folder.mkdir()
    subject = f"{adapter.name} version {adapter.version}"
    act = partial(download_artifacts, artifact_uri=adapter.source, dst_path=str(folder), tracking_uri=uri)
    try:
        return Path(keep_trying(act, f"downloading {subject}", PATIENCE_SECONDS))
    except MlflowException as error:
        raise ModelNotFound(f"the files of {subject} are not in the registry: {error}") from error


def _check_adapter(folder: Path, subject: str) -> None:
    if not (folder / WEIGHTS).is_file():
        raise ModelUnusable(f"{subject} has no {WEIGHTS} in the registry")
    if damage := find_weight_damage(folder / WEIGHTS):
        raise ModelUnusable(f"{subject} can't be exported: {WEIGHTS} {damage}")
    if problem := find_contradiction(folder):
        raise ModelUnusable(f"{subject} can't be exported: {problem}")


def _list(names: list[str]) -> str:
    return (", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")) or "none"
