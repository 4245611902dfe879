"""Datasets that users added (`jobs.own_data`): finds a version's file here or, on other machines, in the store."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from jobs.own_data.naming import NEWEST, read_version
from jobs.own_data.registry import OwnRegistry
from jobs.own_data.version import DataVersion
from jobs.preflight.dataset_registry import find_view
from jobs.settings import Settings
from jobs.shared_store import SharedStore
from jobs.store_lists import Damaged
from sft.errors import DatasetNotFound, InvalidDataset
from sft.files.temporary_folders import temporary_folder
from tasks.dataset_store import store_dataset
from tasks.dataset_version import DatasetVersion
from tuneyard_wire.dataset_reference import DatasetReference

RECORD = "version.json"  # in the store, beside the file


def resolve_own(named: DatasetReference, settings: Settings, split: str) -> DatasetVersion | None:
    """The version that a reference means in this machine's registry of added data; None if it has no such dataset.

    Raises:
        DatasetNotFound: it has other versions of it.
        InvalidDataset: the configured registry has a dataset of this name too.
    """
    registry = OwnRegistry(settings.home)
    version = registry.find(named)
    if version is None:
        return None
    view = find_view(settings, True)
    if view is not None and view.has(named.name, (None, named.revision)):
        raise InvalidDataset(
            f"dataset {named} is in the registry {view.folder} and was added too; add the file under another name, and "
            "delete it under this one"
        )
    return _describe(version, registry.locate(version), settings, split, str(registry.folder))


def fetch_own(named: DatasetReference, settings: Settings, split: str) -> DatasetVersion | None:
    """The version of a dataset that was added on another machine, from the store; None if it is not there.

    Raises:
        StackError: the store can't be reached.
    """
    store = SharedStore.find(settings)
    if store is None:
        return None
    owner, item = owner_in_store(named.name), named.revision
    if item is None or item in NEWEST:
        numbers = [number for name in store.list(owner) if (number := read_version(name)) is not None]
        item = f"v{max(numbers)}" if numbers else None
    kept = store.get(owner, item) if item and "/" not in item and item not in (".", "..") else None
    if kept is None:
        return None
    with temporary_folder("tuneyard-own-data-") as folder:
        try:
            store.fetch(owner, kept, folder)
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            version = DataVersion.from_json(json.dumps(record["version"]), record["commit"])
        except (Damaged, ValueError, TypeError, KeyError, FileNotFoundError) as error:
            raise InvalidDataset(f"dataset {named} is damaged in the store ({error}); add it again") from error
        return _describe(version, folder / version.file, settings, split, kept.url)


def owner_in_store(name: str) -> str:
    """The owner under which the store keeps a dataset's versions: each by its version and by its commit."""
    return f"own-data/{name}"


def _describe(version: DataVersion, path: Path, settings: Settings, split: str, url: str) -> DatasetVersion:
    def link(_name: str, target: Path) -> None:
        with suppress(OSError):  # another disk, or a file system without links
            os.link(path, target)
            return
        try:
            shutil.copyfile(path, target)
        except FileNotFoundError as error:
            raise DatasetNotFound(f"dataset {version.reference}: its file {path} is missing; add it again") from error

    stored = store_dataset(settings.home / "datasets", version.md5, {version.file: version.md5}, link, split)
    names = {"name": version.name, "revision": version.version, "commit": version.commit}
    return DatasetVersion.of(stored, **names, source="dvc", url=url)
