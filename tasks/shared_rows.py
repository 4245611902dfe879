"""A job's dataset and its tokenized rows in the shared store, so that no attempt depends on another machine's disk.

Each attempt trains on the files that the first one resolved, on any machine and even if their source has changed.
"""

import json
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from tenacity import retry_if_exception_type

from jobs.errors import StoreRefused
from jobs.retrying import patient
from jobs.shared_store import SharedStore, hash_file, owner_of
from jobs.store_lists import Damaged, Files
from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.data.parts import list_parts
from sft.data.tokenization import place_of_prepared
from sft.errors import StackError
from sft.files.disk import raising_disk_full
from sft.files.publication import publish_folder
from sft.files.temporary_folders import temporary_folder
from tasks.dataset_mix import AnyDataset, DatasetMix, list_versions, resolve_all
from tasks.dataset_version import DatasetVersion
from tasks.journal import Journal
from tasks.store_waits import PATIENCE_SECONDS, send_in_background, tell_of_wait
from tasks.tokenize import CACHE_FOLDER, tokenize_dataset

logger = logging.getLogger(__name__)

DATASETS, ROWS = "datasets", "rows"  # owners in the store
OF_JOB = "dataset"  # in a job's place: the list of its dataset's files
FACTS = "version.json"
CACHE = "shared-datasets"


@task(
    name="Resolve dataset",
    task_run_name="Resolve dataset {config.dataset_names}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def resolve_dataset(config: SFTConfig, journal: Journal) -> AnyDataset:
    """Fetch the job's datasets from the store; the first attempt calls `resolve_all`, whose errors it raises.

    Raises:
        StackError: the store stayed down.
    """
    store = SharedStore.find(journal.settings)
    if store is not None and journal.attempt.number > 1 and (known := _fetch_dataset(store, journal)):
        return known
    dataset = resolve_all(config, journal.settings)
    if store is not None:
        send_in_background("The dataset", lambda: _send_dataset(store, journal, dataset))
    return dataset


@task(name="Tokenize", task_run_name="Tokenize", cache_policy=NO_CACHE)
def tokenize(config: SFTConfig, dataset: AnyDataset, model: Path, journal: Journal) -> AnyRows:
    """`tokenize_dataset`, or the rows that another machine has tokenized from the same content in the same way."""
    store = SharedStore.find(journal.settings)
    if store is None:
        return tokenize_dataset(config, dataset, model, journal)
    cache = journal.settings.home / CACHE_FOLDER
    folders = [
        place_of_prepared(own_config, model, version.train_file, cache, version.eval_file)
        for own_config, version in list_versions(config, dataset)
    ]
    made = [folder for folder in folders if not folder.exists()]
    for folder in made:
        try:
            _fetch_rows(store, folder)
        except (StackError, StoreRefused, Damaged) as error:
            logger.warning("Tokenizing here: %s", error)
    made = [folder for folder in made if not folder.exists()]
    data = tokenize_dataset(config, dataset, model, journal)
    for folder in dict.fromkeys(made):
        send_in_background("The tokenized rows", partial(store.put, ROWS, folder.name, folder))
    return data


def _fetch_dataset(store: SharedStore, journal: Journal) -> AnyDataset | None:
    """The job's datasets from the store; None if they are not there."""
    again = patient(retry_if_exception_type(StackError), PATIENCE_SECONDS, tell=tell_of_wait)
    try:
        kept = again(store.get, owner_of(journal.job_id), OF_JOB)
        if kept is None:
            return None
        folder = journal.settings.home / CACHE / kept.files[FACTS][0]
        if not folder.exists():
            with raising_disk_full(folder, "the dataset", kept.bytes), publish_folder(folder, replace=False) as fresh:
                store.fetch(DATASETS, kept, fresh)
            logger.info("Fetched the dataset from the store (%.1f MB)", kept.bytes / 1e6)
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return _read_facts(facts, folder)
    except (Damaged, KeyError) as error:
        logger.warning("The job's dataset in the store can't be used, and is resolved again: %s", error)
        return None


def _read_facts(facts: dict[str, Any], folder: Path) -> AnyDataset:
    if "sources" in facts:
        sources, validation = (
            [_read_version(one, folder) for one in facts[name]] for name in ("sources", "validation")
        )
        return DatasetMix(tuple(sources), tuple(facts["weights"]), tuple(validation))
    return _read_version(facts, folder)


def _read_version(facts: dict[str, Any], folder: Path) -> DatasetVersion:
    eval_name = facts["eval_file"]
    files = {"train_file": folder / facts["train_file"], "eval_file": eval_name and folder / eval_name}
    return DatasetVersion(**(facts | files | {"unused": tuple(facts["unused"])}))


def _send_dataset(store: SharedStore, journal: Journal, dataset: AnyDataset) -> None:
    listed: Files = {}

    def send(version: DatasetVersion, place: str = "") -> dict[str, Any]:
        """Send a version's files; returns its facts."""
        names: dict[str, str | None] = {}
        for field, path in {"train_file": version.train_file, "eval_file": version.eval_file}.items():
            folder = place + field.removesuffix("_file")
            names[field] = f"{folder}/{path.name}" if path else None
            for part in list_parts(path) if path else ():
                digest = hash_file(part)
                store.put_file(DATASETS, part, digest)
                listed[f"{folder}/{part.name}"] = digest, part.stat().st_size
        return asdict(version) | names

    if isinstance(dataset, DatasetMix):
        sources = [send(version, f"{place}/") for place, version in enumerate(dataset.versions)]
        count = len(dataset.sources)
        sent: dict[str, Any] = {"sources": sources[:count], "weights": dataset.weights, "validation": sources[count:]}
    else:
        sent = send(dataset)
    with temporary_folder("tuneyard-version-") as folder:
        facts = folder / FACTS
        facts.write_text(json.dumps(sent, indent=2), encoding="utf-8")
        listed[FACTS] = hash_file(facts), facts.stat().st_size
        store.put_file(DATASETS, facts, listed[FACTS][0])
    with journal.attempt.publishing():
        store.write_list(owner_of(journal.job_id), OF_JOB, listed)


def _fetch_rows(store: SharedStore, folder: Path) -> None:
    kept = store.get(ROWS, folder.name)
    if kept is not None:
        with raising_disk_full(folder, "the tokenized rows", kept.bytes), publish_folder(folder, replace=False) as new:
            store.fetch(ROWS, kept, new)
        logger.info("Fetched the tokenized rows from the store (%.1f MB)", kept.bytes / 1e6)
