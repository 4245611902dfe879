"""Folders in which uploaded files are written before they are published, on the disk of the registry.

A folder is locked while its process lives; one that a killed process left behind is removed with the next one made.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from jobs.own_data.registry import FOLDER
from sft.errors import DiskFull
from sft.files.disk import measure_free, telling_full_disk
from sft.files.temporary_folders import make_locked_folder, remove_unused

STAGING = "staging"
PREFIX = "upload-"
LOCK = "parts.lock"  # in the folder of an upload: held while its parts are counted and one is added
SPARE_BYTES = 64 * 2**20  # that stay free for everything else on the disk


@contextmanager
def staging_folder(home: Path, expected_bytes: int = 0) -> Iterator[Path]:
    """An empty folder for one upload, removed after the block.

    Raises:
        DiskFull: there is no space for a file of so many bytes.
    """
    place = home / FOLDER / STAGING
    with noticing_full_disk(place):
        place.mkdir(parents=True, exist_ok=True)
        remove_unused(place.glob(f"{PREFIX}*"))
        check_space(place, expected_bytes)
        folder = make_locked_folder(PREFIX, place=place)
    try:
        yield folder.folder
    finally:
        folder.remove()


def check_space(place: Path, expected_bytes: int) -> None:
    """Raise DiskFull unless a file of this size fits."""
    free = measure_free(place)
    if expected_bytes and expected_bytes + SPARE_BYTES > free:
        raise DiskFull(
            f"no space left in {place}: the file has {expected_bytes / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; "
            "free some"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one thread or process at a time change an upload. Raises FileNotFoundError if it is removed."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / LOCK).stat()  # it was removed while this one waited
        yield
    finally:
        os.close(lock)


def noticing_full_disk(place: Path) -> AbstractContextManager[None]:
    """Raise errors of the block that say that the disk is full as DiskFull."""
    return telling_full_disk(place, "upload a smaller file")
