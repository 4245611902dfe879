"""Temporary folders beside a target, whose content is made there and then renamed into place.

Each is locked while its maker lives, so that later makers can tell what killed ones left from what is in use.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".tuneyard"


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder beside `folder`, which goes with the block unless it was renamed; leftovers go too."""
    remove_leftovers(folder.parent)
    fresh, lock = _make(folder)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(lock)


def remove_leftovers(place: Path) -> None:
    """Remove what killed makers have left in this folder."""
    for found in place.glob(f".*-????????{SUFFIX}"):
        with contextlib.suppress(OSError):  # it is being made, or gone, or this file system knows no locks
            lock = _open(found)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found)
            finally:
                os.close(lock)


def _make(folder: Path) -> tuple[Path, int]:
    while True:
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=SUFFIX, dir=folder.parent))
        try:
            lock = _open(fresh)
        except FileNotFoundError:
            continue  # somebody took it for a leftover before it was locked
        with contextlib.suppress(OSError):  # a file system without locks: what is left over there stays
            fcntl.flock(lock, fcntl.LOCK_EX)
        if fresh.exists():
            return fresh, lock
        os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
