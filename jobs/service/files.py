"""Files of OpenAI's interface: each is a version of a dataset that was added, or one whose rows could not be read.

A version's id is made from its commit, so that versions added in any way have one, and none has another one's.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from jobs.errors import NameTaken
from jobs.own_data.naming import FILE_ID, MAX_CHARACTERS, name_after, read_filename, write_file_id
from jobs.own_data.registry import OwnRegistry, may_see
from jobs.own_data.unreadable import UnreadableFile, UnreadableFiles
from jobs.own_data.version import DataVersion
from jobs.service.data_adder import DataAdder, NewFile
from jobs.service.job_service import JobService
from jobs.service.own_data import delete_versions, find_contents, refuse_hidden
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, InvalidConfig, InvalidDataset, ResourceLimit
from sft.sources import DatasetSource, check_different, find_alias
from tuneyard_wire.dataset_reference import DatasetReference, find_file_suffix

UNNAMED = "file"
PART_MARK = "-file"  # ends the dataset's name for `x-00000-of-00002.jsonl`, which would be one part of several
JSON_LINES = ".jsonl"


@dataclass(frozen=True)
class StoredFile:
    """A file.

    Attributes:
        problem: why its rows, or some of them, can't be used.
        version: what jobs name; None if its rows could not be read.
    """

    id: str
    filename: str
    size: int  # bytes
    created_at: datetime
    problem: str | None
    version: DataVersion | None = None

    @property
    def has_rows(self) -> bool:
        """Whether it has rows in a format that jobs know without a name of a column."""
        return self.version is not None and self.version.format is not None


def list_files(settings: Settings, owner: UUID | None = None) -> list[StoredFile]:
    """The files that an owner sees (None: all), newest first."""
    versions = [_of_version(one) for one in OwnRegistry(settings.home).list_all() if may_see(one, owner)]
    unreadable = [_of_unreadable(one) for one in UnreadableFiles(settings.home).list_all(owner)]
    return sorted(versions + unreadable, key=lambda file: (file.created_at, file.id), reverse=True)


def find_file(settings: Settings, file_id: str, owner: UUID | None = None) -> StoredFile:
    """The file of this id. Raises DatasetNotFound if there is none, or the owner (None: anyone) does not see it."""
    if FILE_ID.fullmatch(file_id):
        for version in OwnRegistry(settings.home).list_all():
            if write_file_id(version.commit) == file_id and may_see(version, owner):
                return _of_version(version)
        if (unreadable := UnreadableFiles(settings.home).find(file_id, owner)) is not None:
            return _of_unreadable(unreadable)
    raise DatasetNotFound(f"file {file_id!r:.80} not found; GET /v1/files lists those that there are")


def add_file(
    adder: DataAdder, file: NewFile, settings: Settings, is_cancelled: Callable[[], bool], client: str
) -> StoredFile:
    """Check a file and publish it, as a dataset of its name that is the owner's or new; or record why it is unreadable.

    Raises as `DataAdder.add` does, but for a file that can't be read.
    """
    filename = read_filename(file.filename) or UNNAMED
    file = replace(file, filename=filename, suffix=find_file_suffix(filename) or JSON_LINES, may_extend_all=False)
    size = file.path.stat().st_size
    problem: Exception | None = None
    for name in _find_names(file, OwnRegistry(settings.home)):
        file = replace(file, name=name).checked()
        try:
            return _of_version(adder.add(file, settings, is_cancelled, client).version)
        except NameTaken as error:
            problem = error
        except (InvalidDataset, ResourceLimit) as error:
            records = UnreadableFiles(settings.home)
            return _of_unreadable(records.add(filename, size, file.sha256 or "", str(error), file.owner))
    raise problem or NameTaken(f"filename {filename!r} is taken; choose another one")


def delete_file(service: JobService, file_id: str, owner: UUID | None = None) -> None:
    """Delete a file.

    Raises:
        DatasetNotFound: there is none, or the owner does not see it.
        DatasetInUse: a job that has not ended needs it.
    """
    file = find_file(service.settings, file_id, owner)
    if file.version is not None:
        delete_versions(service, str(file.version.reference), owner)
    elif (unreadable := UnreadableFiles(service.settings.home).find(file_id, owner)) is not None:
        UnreadableFiles(service.settings.home).remove(unreadable)


def replace_ids(config: SFTConfig, settings: Settings, owner: UUID | None = None) -> SFTConfig:
    """A configuration with `NAME@VERSION` in place of ids of files, so that a job is as any other.

    Raises:
        DatasetNotFound: there is no such file, or the owner does not see it.
        InvalidDataset: its rows could not be read.
        InvalidConfig: an id is in a list twice.
    """
    found: dict[str, str] = {}
    for field, text in config.name_datasets():
        if (file_id := read_id(text)) is not None:
            file = find_file(settings, file_id, owner)
            if file.version is None:
                raise InvalidDataset(f"{field}: file {file_id} can't be used: {file.problem}")
            found[text] = str(file.version.reference)
    if not found:
        return config
    fields = {name: getattr(config, name) for name in ("dataset_name", "validation_dataset")}
    return config.model_copy(
        update={name: _rename(name, value, found) for name, value in fields.items() if value is not None}
    )


def settle_config(config: SFTConfig, settings: Settings, owner: UUID | None = None) -> SFTConfig:
    """A configuration of datasets that the owner (None: anyone) sees, without ids.

    Raises as `replace_ids` does, and InvalidConfig if two names in a list mean the same content.
    """
    config = replace_ids(config, settings, owner)
    refuse_hidden(config, settings, owner)
    if alias := find_alias(find_contents(config, settings)):
        raise InvalidConfig(alias)
    return config


def settle_job(spec: JobSpec, settings: Settings, owner: UUID | None = None) -> JobSpec:
    """A job with the configuration of `settle_config`."""
    return spec.model_copy(update={"config": settle_config(spec.config, settings, owner)})


def read_id(reference: str) -> str | None:
    """The id of a file, given as a dataset's name or, as `/train` completes it, as a revision; None for other text."""
    named = DatasetReference.parse(reference)
    text = named.name if named.revision is None else named.revision
    return text if FILE_ID.fullmatch(text) else None


def _rename(field: str, value: Any, found: dict[str, str]) -> Any:
    if isinstance(value, str):
        return found.get(value, value)
    if isinstance(value, DatasetSource):
        return value.model_copy(update={"name": found.get(value.name, value.name)})
    renamed = tuple(_rename(field, one, found) for one in value)
    try:
        check_different([one if isinstance(one, str) else one.name for one in renamed], "name it once")
    except ValueError as error:
        raise InvalidConfig(f"{field}: {error}") from error
    return renamed


def _find_names(file: NewFile, registry: OwnRegistry) -> Iterator[str]:
    """Names that the dataset may have, the best first: that of the file, or one that others are unlikely to have."""
    mark = f"-{file.owner.hex[:8] if file.owner else UNNAMED}"
    digest = f"-{hashlib.sha256(file.filename.encode()).hexdigest()[:8]}"
    try:
        begin = name_after(file.filename, PART_MARK)
        end = "" if file.filename.isascii() else digest  # two that differ in what a name can't hold are two datasets
    except InvalidConfig:
        begin, end = UNNAMED, digest
    name = _join(begin, end)
    versions = registry.list_versions(name)
    if not versions or versions[-1].owner == file.owner:
        yield name
    yield _join(begin, end + mark)


def _join(begin: str, end: str) -> str:
    """A dataset's name with the whole end, and as much of the begin as there is space for."""
    return begin[: MAX_CHARACTERS - len(end)].rstrip("-._") + end


def _of_version(version: DataVersion) -> StoredFile:
    problem = None
    if version.bad or version.format is None:
        what = f"{version.bad} of {version.rows} rows can't be used and are left out"
        if version.format is None:
            what = "no row is in a format that is known, but a job may name a column of text (dataset_text_field)"
        problem = "; ".join([what, *(f"row {row}: {reason}" for row, reason in version.bad_rows[:1])])
    file_id = write_file_id(version.commit)
    return StoredFile(file_id, version.filename, version.size, version.created_at, problem, version)


def _of_unreadable(file: UnreadableFile) -> StoredFile:
    return StoredFile(file.id, file.filename, file.size, file.created_at, file.problem)
