"""Puts base models below the model root: complete or absent, and into the shared store where there is one."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from jobs.base_models.catalog import describe_model, find_folder, find_record, list_inner
from jobs.base_models.placing import (
    REMOVED,
    changing_models,
    check_free,
    copy_model,
    discard,
    link_model,
    may_link,
    put_in_place,
)
from jobs.base_models.records import Record, read_record, remove_record
from jobs.errors import InvalidUpload, ModelInUse, ModelProtected
from jobs.preflight.models import check_files
from jobs.settings import Settings
from jobs.shared_store import SharedStore, hash_file
from sft.errors import ModelNotFound
from tuneyard_wire.model_folder import (
    MODEL_NAME_RULE,
    How,
    explain_no_model,
    find_foreign,
    is_model_folder,
    is_model_name,
    select_files,
)

logger = logging.getLogger(__name__)

STORE_OWNER = "models"  # as in `tasks.model_store`


class Added(NamedTuple):
    """A model that was added, or was there already.

    Attributes:
        model: the fields of `tuneyard_wire.base_models.Model`.
        is_new: whether this call added it.
        left_out: entries of the folder that a copy does not have.
    """

    model: dict[str, Any]
    is_new: bool
    left_out: tuple[str, ...] = ()


def add_folder(folder: Path, name: str, settings: Settings, how: How = "auto", owner: UUID | None = None) -> Added:
    """Add the base model in a folder of this machine to the model root.

    Args:
        name: that of the folder, if it lies in the model root.
        how: `link` refers to the folder, which must be in an allowed root; `copy` copies its files; `auto` links
            where that is allowed, and copies otherwise.

    Raises:
        InvalidUpload: the folder has no base model, a file in it is a link to elsewhere, the name can't be used, or
            it lies in the model root under another one.
        ModelExists: another model has this name.
        ModelUnusable: the files are damaged, or not those of a base model.
        InvalidConfig: `link`, and the folder is in no allowed root.
        DiskFull: the copy does not fit.
        StackError, StoreRefused: the model can't be put into the store.
    """
    source = folder.expanduser().resolve()
    if (inside := find_name_of(source, settings)) is not None:
        if name != inside:
            raise InvalidUpload(
                f"name: {str(folder)!r} is in the model root already, as {inside}; use that name, or add a copy of the "
                f"folder from another place, got {name!r:.200}"
            )
        return Added(describe_model(inside, settings), False)
    check_name(name)
    check_source(source)
    selection = select_files(source)
    is_linked = how == "link" or (how == "auto" and may_link(source, settings))
    if not is_linked and (foreign := find_foreign(source, selection.files, settings.allowed_model_roots)):
        raise InvalidUpload(f"{str(folder)!r}: {foreign}")
    check_files(source, repr(str(folder)))
    record = _describe_source(source, selection.files, owner)
    place = settings.model_root / name
    if _is_same(place, name, source, record, settings, is_linked):
        return Added(describe_model(name, settings), False)
    check_free(name, settings)  # before anything is copied
    place.parent.mkdir(parents=True, exist_ok=True)
    if is_linked:
        link_model(source, place, name, settings, record)
    else:
        copy_model(source, place, name, settings, record)
    send_to_store(name, settings, {path: hash_file(place / path) for path in record.files} if settings.store else {})
    return Added(describe_model(name, settings), True, () if is_linked else selection.left_out)


def find_name_of(folder: Path, settings: Settings) -> str | None:
    """The name of a folder that lies in the model root already; None for any other."""
    with suppress(ValueError):
        name = folder.expanduser().resolve().relative_to(settings.model_root).as_posix()
        if is_model_folder(settings.model_root / name) and not name.startswith("."):
            return name
    return None


def publish_upload(files: Path, name: str, settings: Settings, record: Record) -> dict[str, Any]:
    """Put the folder with the files of an upload in its place; returns the model's fields.

    Raises:
        ModelExists: another model has this name.
        ModelUnusable: the files are damaged, or not those of a base model.
        StackError, StoreRefused: the model can't be put into the store; nothing is published.
    """
    check_files(files, repr(name))
    check_free(name, settings)  # before anything is sent
    _send(name, files, record.digests or {}, settings)
    put_in_place(files, name, settings, record)
    logger.info("Base model %s was uploaded", name)
    return describe_model(name, settings)


def find_same(name: str, settings: Settings, digests: Mapping[str, str]) -> bool:
    """Whether the model of this name was uploaded with these files."""
    try:
        record = find_record(name, find_folder(name, settings), settings)
    except ModelNotFound:
        return False
    return record is not None and record.digests == dict(digests)


def remove_model(
    name: str, settings: Settings, find_jobs: Callable[[], list[str]], remover: UUID | None, may_remove_all: bool
) -> None:
    """Remove a model from the model root; of a linked one the link alone. The store keeps its copy for jobs.

    Args:
        find_jobs: the ids of jobs that need the model and have not ended.
        remover: the owner of the API key that asks.
        may_remove_all: whether it may remove models that others added.

    Raises:
        ModelNotFound: there is none of this name.
        ModelProtected: it was added by another key, or by hand.
        ModelInUse: a job needs it, or other models are in its folder.
    """
    folder = find_folder(name, settings)
    record = find_record(name, folder, settings)
    if not may_remove_all and (record is None or record.owner_id is None or record.owner_id != remover):
        raise ModelProtected(
            f"{name} was not added by this API key; an admin key, or the one that added it, removes it"
        )
    with changing_models(settings):
        if inner := list_inner(name, settings):
            raise ModelInUse(f"{name} has other base models in its folder: {', '.join(inner[:3])}; delete them first")
        _check_unused(name, find_jobs())
        aside = settings.model_root / f"{REMOVED}{folder.name}"
        folder.rename(aside)
        try:
            _check_unused(name, find_jobs())  # also none that was submitted meanwhile
        except BaseException:
            aside.rename(folder)
            raise
        remove_record(settings, name)
        discard(aside)
        with suppress(OSError):
            folder.parent.rmdir()  # an organisation without models
    logger.info("Base model %s was removed", name)


def check_name(name: str) -> None:
    """Raise InvalidUpload for a name that no model may be added under."""
    if not is_model_name(name):
        raise InvalidUpload(f"name: {MODEL_NAME_RULE}, got {name!r:.200}")


def check_source(folder: Path) -> None:
    """Raise InvalidUpload for a folder that has no base model."""
    if (lack := explain_no_model(folder)) is not None:
        raise InvalidUpload(f"{str(folder)!r} {lack}")


def send_to_store(name: str, settings: Settings, digests: Mapping[str, str]) -> None:
    """Put a model of the model root into the store, if there is one. Raises StackError and StoreRefused."""
    _send(name, settings.model_root / name, digests, settings)


def _send(name: str, folder: Path, digests: Mapping[str, str], settings: Settings) -> None:
    store = SharedStore.find(settings)
    if store is None or not settings.store_models:
        return
    sent = store.put_files(STORE_OWNER, folder, digests)
    sizes = {path: (digest, (folder / path).stat().st_size) for path, digest in digests.items()}
    store.write_list(STORE_OWNER, name, sizes)
    logger.info("Base model %s is in the store (%.1f MB sent)", name, sent / 1e6)


def _describe_source(source: Path, files: tuple[str, ...], owner: UUID | None) -> Record:
    facts = {path: (source / path).stat() for path in files}
    return Record(
        datetime.now(UTC).isoformat(),
        {path: found.st_size for path, found in facts.items()},
        str(owner) if owner else None,
        source=str(source),
        marks={path: found.st_mtime_ns for path, found in facts.items()},
    )


def _is_same(place: Path, name: str, source: Path, record: Record, settings: Settings, is_linked: bool) -> bool:
    """Whether the model was added from this folder before, in the same way, and the folder has not changed."""
    if is_linked:
        return place.is_symlink() and place.resolve() == source
    known = read_record(settings, name)
    if known is None or place.is_symlink() or not is_model_folder(place) or not known.suits(place):
        return False
    return replace(known, added_at=record.added_at, owner=record.owner) == record


def _check_unused(name: str, job_ids: list[str]) -> None:
    if job_ids:
        more = f" and {len(job_ids) - 1} more" if len(job_ids) > 1 else ""
        raise ModelInUse(f"{name} is the base model of job {job_ids[0]}{more}, not ended yet; cancel it or wait for it")
