"""Checks whether an adapter's dataset has changed since it was trained, and builds the job that retrains it."""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.errors import AdapterNotFound
from jobs.retrain_spec import RetrainSpec
from jobs.settings import Settings
from jobs.spec import JobSpec, MadeBy
from jobs.vocabulary import RETRAIN_FLOW_NAME
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, InvalidConfig
from sft.explanations import explain_validation_error
from sft.sources import DatasetSource
from tasks.dataset import find_main_branch, resolve, resolve_registered
from tasks.dataset_mix import AnyDataset, DatasetMix, resolve_all
from tasks.dataset_registry import ensure_registry
from tasks.limits import reading_input
from tasks.register import SPEC_TAG, RegisteredAdapter, find_latest, list_adapters
from tuneyard_wire.dataset_reference import DatasetReference

MAIN = "main"
NEAREST = 3


def find_adapter(settings: Settings, name: str) -> RegisteredAdapter:
    """Find the newest version of an adapter that a job of this service trained.

    Raises:
        AdapterNotFound: there is none of this name; suggests similar names.
        InvalidConfig: its configuration is not known.
    """
    names = list_adapters(settings)
    adapter = find_latest(settings, name) if name in names else None
    if adapter is None:
        nearest = difflib.get_close_matches(name, names, n=NEAREST)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else _list_names(names)
        raise AdapterNotFound(f"adapter_name {name!r} is not in the registry; {hint}")
    if SPEC_TAG not in adapter.tags:
        raise InvalidConfig(
            f"version {adapter.version} of {name} was not made by a job of this service, so its settings are not "
            "known; train it once with a job"
        )
    return adapter


def _list_names(names: list[str]) -> str:
    return f"it has {', '.join(sorted(names))}" if names else "it has no adapter yet; train it once with a job"


def read_job(adapter: RegisteredAdapter) -> JobSpec:
    """Read the job that trained it. Raises InvalidConfig if such a job is no longer valid in this version."""
    try:
        return adapter.to_spec()
    except ValidationError as error:
        problems = "; ".join(explain_validation_error(error, JobSpec).splitlines())
        raise InvalidConfig(
            f"the settings that version {adapter.version} of {adapter.name} was trained with are no longer valid "
            f"({problems}); train it once with others"
        ) from error


def find_source(adapter: RegisteredAdapter, config: SFTConfig) -> str:
    """The origin of its dataset: `dvc`, `file` or `hub`; versions of earlier releases do not record it."""
    if recorded := adapter.tags.get("dataset_source"):
        return recorded
    revision, commit = adapter.tags.get("dataset_revision"), adapter.tags.get("dataset_commit")
    if DatasetReference.parse(config.dataset_names).revision is not None:
        return "dvc"
    return "file" if not commit else "hub" if revision == commit else "dvc"


def look_at_data(adapter: RegisteredAdapter, wanted: RetrainSpec, settings: Settings) -> AnyDataset:
    """Resolve the adapter's current dataset, or all of them.

    Raises:
        DatasetNotFound: the dataset does not exist any more.
        InvalidConfig: a revision is given for a dataset without revisions.
        InvalidDataset: the dataset can't be read.
    """
    config, name = read_job(adapter).config, adapter.tags["dataset"]
    if config.is_mixed:
        return _look_at_mix(adapter, config, wanted, settings)
    source = find_source(adapter, config)
    if source == "dvc":
        with reading_input(settings, name):
            return resolve_registered(_find_reference(name, wanted), settings, config.dataset_split)
    if wanted.dataset_version not in (None, MAIN):
        raise InvalidConfig(
            f"dataset_version {wanted.dataset_version!r} is a version in the dataset registry, but {adapter.name} was "
            f"trained on {_describe(source)} {name}, whose current data is used; leave dataset_version out"
        )
    dataset = resolve(name, settings, config.dataset_split)
    if dataset.source != source:
        raise DatasetNotFound(
            f"{adapter.name} was trained on {_describe(source)} {name}, which is gone: the name now means "
            f"{_describe(dataset.source)}"
        )
    return dataset


def _look_at_mix(adapter: RegisteredAdapter, config: SFTConfig, wanted: RetrainSpec, settings: Settings) -> AnyDataset:
    """Resolve all datasets of a mix: those of the registry on its main branch, unless one is there in two versions."""
    if wanted.dataset_version not in (None, MAIN):
        raise InvalidConfig(
            f"dataset_version {wanted.dataset_version!r} is a version of one dataset, but {adapter.name} was trained "
            f"on several, whose current data is used; leave dataset_version out"
        )
    recorded: list[dict[str, Any]] = json.loads(adapter.tags["dataset_versions"])
    counts = Counter(version["name"] for version in recorded)
    branch = find_main_branch(ensure_registry(settings)) if any(one["source"] == "dvc" for one in recorded) else ""
    names = [
        str(DatasetReference(version["name"], branch)) if _follows_main(version, counts) else given
        for version, (_, given) in zip(recorded, config.name_datasets(), strict=True)
    ]
    mix = resolve_all(rename_datasets(config, names), settings)
    assert isinstance(mix, DatasetMix)  # noqa: S101 - for the type checker
    for version, found in zip(recorded, mix.versions, strict=True):
        if found.source != version["source"]:
            raise DatasetNotFound(
                f"{adapter.name} was trained on {_describe(version['source'])} {found.name}, which is gone: the name "
                f"now means {_describe(found.source)}"
            )
    return mix


def _follows_main(version: dict[str, Any], counts: Counter[str]) -> bool:
    return version["source"] == "dvc" and counts[version["name"]] == 1


def rename_datasets(config: SFTConfig, names: Sequence[str]) -> SFTConfig:
    """The configuration with other references for its datasets, in the order of `name_datasets`."""
    count = len(config.sources)
    sources = tuple(
        DatasetSource(name=name, weight=source.weight) for name, source in zip(names, config.sources, strict=False)
    )
    renamed: dict[str, Any] = {"dataset_name": sources if isinstance(config.dataset_name, tuple) else names[0]}
    if config.validation_dataset is not None:
        is_list = isinstance(config.validation_dataset, tuple)
        renamed["validation_dataset"] = tuple(names[count:]) if is_list else names[count]
    return config.model_copy(update=renamed)


def _find_reference(name: str, wanted: RetrainSpec) -> DatasetReference:
    """The adapter's dataset at the wanted version, read as the Training API reads `dataset_version`."""
    if wanted.dataset_version is None:
        return DatasetReference(name)
    asked = DatasetReference.parse_version(wanted.dataset_version, name)
    if asked.name != name:
        raise InvalidConfig(
            f"dataset_version {wanted.dataset_version!r} names the dataset {asked.name!r}, but {wanted.adapter_name} "
            f"was trained on {name!r}; give a revision, or {name}@ and a revision"
        )
    if problem := asked.find_problem():
        raise InvalidConfig(f"dataset_version {problem}")
    return asked


def _describe(source: str) -> str:
    return {"dvc": "the registry's dataset", "file": "the file", "hub": "the Hub's dataset"}[source]


def build_job(adapter: RegisteredAdapter, dataset: AnyDataset, run_id: str, settings: Settings) -> JobSpec:
    """Build the adapter's job with the present data."""
    spec, before = read_job(adapter), adapter.tags.get("dataset_md5", "")
    pinned = [
        str(DatasetReference(version.name, version.commit)) if version.source == "dvc" else given
        for version, (_, given) in zip(dataset.versions, spec.config.name_datasets(), strict=True)
    ]
    config = rename_datasets(spec.config, pinned)
    is_changed = dataset.md5 != before
    made_by = MadeBy(
        flow=RETRAIN_FLOW_NAME,
        run_id=run_id,
        adapter_version=adapter.version,
        reason=f"{dataset.name} {'has' if is_changed else 'has not'} changed since version {adapter.version} of "
        f"{adapter.name} ({f'md5 {before} is now {dataset.md5}' if is_changed else 'forced'})",
        fingerprint=digest_job(config, dataset, settings),
    )
    return spec.model_copy(update={"config": config, "adapter_name": adapter.name, "made_by": made_by})


def digest_job(config: SFTConfig, dataset: AnyDataset, settings: Settings) -> str:
    """Digest of all that a training depends on: rows, configuration, and the base model's files if they are here."""
    plain = config.model_dump(mode="json", exclude={"dataset_name", "validation_dataset"})
    made_of = [dataset.name, dataset.md5, plain, stamp_model(settings.model_root / config.base_model)]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def stamp_model(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a model's files below the model root; empty for a model from elsewhere."""
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
