"""Puts the files of a base model in their place below the model root, whole, or removes them."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.base_models.catalog import find_problem
from jobs.base_models.records import Record, write_record
from jobs.errors import ModelExists
from jobs.settings import Settings
from sft.errors import DiskFull, ModelUnusable
from sft.files.disk import is_about_space, measure_free
from sft.files.places import follow
from sft.files.publication import discard_folder, sync_path, sync_tree
from sft.files.temporary_folders import fresh_folder

LOCK = ".adding.lock"  # in the model root: held while a model is put in its place or removed
REMOVED = ".removed-"  # begins the name of what is being removed
FICLONE = 0x40049409  # of Linux: the copy shares the blocks until one of the two is written to


def check_free(name: str, settings: Settings) -> None:
    """Raise ModelExists if another model, or anything else, has this name."""
    if os.path.lexists(settings.model_root / name):
        raise ModelExists(f"there is another base model {name}; choose another name, or remove it first")


def may_link(source: Path, settings: Settings) -> bool:
    """Whether a link in the model root may point to this folder."""
    return follow(str(source), settings.model_root, settings.allowed_model_roots) is not None


def link_model(source: Path, place: Path, name: str, settings: Settings, record: Record) -> None:
    with changing_models(settings):
        check_free(name, settings)
        place.symlink_to(source, target_is_directory=True)
        if problem := find_problem(name, place, settings):
            place.unlink()
            with suppress(OSError):  # others are in it
                place.parent.rmdir()
            raise ModelUnusable(f"{problem}; or copy it (--copy)")
        write_record(settings, name, record)


def copy_model(source: Path, place: Path, name: str, settings: Settings, record: Record) -> None:
    needed, free = sum(record.files.values()), measure_free(place.parent)
    lack = (
        f"the base model needs {needed / 1e9:.1f} GB in {place.parent}, and {free / 1e9:.1f} GB are free; free some, "
        "or set TUNEYARD_MODEL_ROOT to a folder on another disk"
    )
    if needed > free:
        raise DiskFull(lack)
    with fresh_folder(place) as fresh:
        try:
            for path in record.files:
                (fresh / path).parent.mkdir(exist_ok=True)
                clone_file(source / path, fresh / path)
            sync_tree(fresh)
        except OSError as error:
            if is_about_space(error):
                raise DiskFull(lack) from error
            raise
        put_in_place(fresh, name, settings, record)


def put_in_place(files: Path, name: str, settings: Settings, record: Record) -> None:
    """Rename a complete folder to that of the model. Raises ModelExists."""
    place = settings.model_root / name
    with changing_models(settings):
        check_free(name, settings)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_record(settings, name, record)
        files.rename(place)
        sync_path(place.parent)


def clone_file(source: Path, target: Path) -> None:
    """Copy a file's content, without copying blocks where the file system can share them."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), FICLONE, reading.fileno())
        except OSError:
            shutil.copyfileobj(reading, writing, 2**22)


@contextmanager
def changing_models(settings: Settings) -> Iterator[None]:
    """Let one process at a time put models in their place or remove them."""
    settings.model_root.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(settings.model_root / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in settings.model_root.glob(f"{REMOVED}*"):  # by a process that was killed
            discard(left)
        yield
    finally:
        os.close(lock)


def discard(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    else:
        discard_folder(place)
