"""What clients do with added datasets: find, list and delete them, as far as they see them.

A dataset is seen by the key that added it and by all who see that key's jobs (`jobs.clients.visibility`).
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

from jobs.engine.listing import JobFilters
from jobs.errors import DatasetInUse
from jobs.own_data.naming import NEWEST, choose_name
from jobs.own_data.registry import OwnRegistry, may_see, name_taken
from jobs.own_data.version import DataVersion
from jobs.preflight.known_names import refuse_known_name
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.settings import Settings
from jobs.shared_store import SharedStore
from jobs.status import JobStatus
from sft.config import SFTConfig
from sft.errors import DatasetNotFound
from sft.files.places import follow
from tuneyard_wire.dataset_reference import DatasetReference

logger = logging.getLogger(__name__)

UNFINISHED = (
    frozenset({JobStatus.CREATED, JobStatus.QUEUED}),
    frozenset({JobStatus.STARTING, JobStatus.RUNNING}),
)
JOBS_SHOWN = 3


def find_versions(settings: Settings, dataset: str, owner: UUID | None = None) -> list[DataVersion]:
    """The versions that a text names, oldest first: of `name` all, of `name@v2` or `name@main` one.

    Args:
        owner: whose datasets are seen; None for all.

    Raises:
        DatasetNotFound: there is none, or the owner does not see it.
    """
    registry, named = OwnRegistry(settings.home), DatasetReference.parse(dataset)
    seen = [version for version in registry.list_versions(named.name) if may_see(version, owner)]
    if not seen:
        raise DatasetNotFound(f"dataset {named.name!r:.120} was not added; `tuneyard data list` shows those that were")
    if named.revision is None:
        return seen
    found = registry.find(named)
    return [found] if found is not None else seen[-1:]


def find_version(settings: Settings, dataset: str, owner: UUID | None = None) -> DataVersion:
    """The version that a text names, of a `name` alone the newest. Raises DatasetNotFound."""
    return find_versions(settings, dataset, owner)[-1]


def list_datasets(settings: Settings, owner: UUID | None = None) -> list[DataVersion]:
    """The newest version of each dataset that the owner sees (None: of all), the last one that was added first."""
    return [version for version in OwnRegistry(settings.home).list_newest() if may_see(version, owner)]


def refuse_taken(settings: Settings, filename: str, name: str | None, owner: UUID | None, may_extend_all: bool) -> None:
    """Raise NameTaken if a file could not be added under its name, before it is sent.

    It may still be taken meanwhile; publishing it checks that again.
    """
    wanted = choose_name(name, filename)
    versions = OwnRegistry(settings.home).list_versions(wanted)
    if versions and not may_extend_all and versions[-1].owner != owner:
        raise name_taken(wanted)
    refuse_known_name(wanted, settings)


def find_contents(config: SFTConfig, settings: Settings) -> Iterator[tuple[str, str, str]]:
    """The datasets of a configuration that were added: place, name, and the digest of the file that is meant now."""
    registry = OwnRegistry(settings.home)
    if not registry.exists:
        return
    for field, text in config.name_datasets():
        named = DatasetReference.parse(text)
        place = follow(named.name, settings.data_root)
        if named.revision is None and place is not None and place.exists():  # a file, which comes first
            continue
        with suppress(DatasetNotFound):  # told by the checks of a submission
            if (version := registry.find(named)) is not None:
                yield field, text, f"{version.sha256}{version.suffix}"


def refuse_hidden(config: SFTConfig, settings: Settings, owner: UUID | None) -> None:
    """Raise DatasetNotFound if a job's configuration names a dataset that was added and that the owner does not see."""
    registry = OwnRegistry(settings.home)
    if owner is None or not registry.exists:
        return
    for field, text in config.name_datasets():
        versions = registry.list_versions(DatasetReference.parse(text).name)
        if versions and not may_see(versions[-1], owner):
            raise DatasetNotFound(f"{field} {text!r} is a dataset of another key; name another one")


def delete_versions(service: JobService, dataset: str, owner: UUID | None = None) -> list[DataVersion]:
    """Delete a version, or of a `name` alone all versions, and their files; returns them.

    Their numbers are not given again, so that a reference never means other data than before.

    Raises:
        DatasetNotFound: there is none, or the owner does not see it.
        DatasetInUse: a job that has not ended needs it.
    """
    settings = service.settings
    versions = find_versions(settings, dataset, owner)
    newest = OwnRegistry(settings.home).list_versions(versions[0].name)[-1]
    refuse_needed(versions, newest, read_unfinished(service))
    OwnRegistry(settings.home).remove(versions)
    if (store := SharedStore.find(settings)) is not None:
        items = [item for version in versions for item in (version.version, version.commit)]
        store.forget(f"own-data/{versions[0].name}", items)
    return versions


def refuse_needed(versions: list[DataVersion], newest: DataVersion, jobs: Iterable[Job]) -> None:
    """Raise DatasetInUse if one of the jobs names one of the versions."""
    needed: dict[str, list[str]] = {}
    for job in jobs:
        for reference in name_datasets(job):
            for version in versions:
                if means(reference, version, is_newest=version.number == newest.number):
                    needed.setdefault(str(version.reference), []).append(str(job.id))
    if needed:
        label, ids = next(iter(needed.items()))
        shown = ", ".join(ids[:JOBS_SHOWN]) + (f" and {len(ids) - JOBS_SHOWN} more" if len(ids) > JOBS_SHOWN else "")
        raise DatasetInUse(f"dataset {label} is needed by job {shown}; wait until it has ended, or cancel it")


def read_unfinished(service: JobService) -> Iterator[Job]:
    """All jobs that have not ended."""
    for statuses in UNFINISHED:
        cursor: str | None = None
        while True:
            page = service.list_jobs(JobFilters(statuses=statuses), limit=200, cursor=cursor)
            yield from page.jobs
            if (cursor := page.next_cursor) is None:
                break


def name_datasets(job: Job) -> list[DatasetReference]:
    """The datasets that a job names, to train or to evaluate on; also one with an invalid configuration."""
    if job.spec is not None:
        return [DatasetReference.parse(text) for _, text in job.spec.config.name_datasets()]
    return [DatasetReference.parse(text) for text in _find_texts(job.raw_config)]


def means(reference: DatasetReference, version: DataVersion, is_newest: bool) -> bool:
    """Whether a reference means this version."""
    if reference.name != version.name:
        return False
    revision = reference.revision
    if revision is None or revision in NEWEST:
        return is_newest
    return revision == version.version or (len(revision) >= 7 and version.commit.startswith(revision))


def _find_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _find_texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _find_texts(inner)
