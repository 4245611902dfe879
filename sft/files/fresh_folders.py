"""Temporary folders beside a target, in which its content is written and then renamed into place.

Each is locked while its process lives, so that others can tell leftovers of killed processes from folders in use.
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
    """Make an empty folder beside `folder`, removed after the block unless renamed; removes leftovers first."""
    remove_leftovers(folder.parent)
    fresh, lock = _make(folder)
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(lock)


def remove_leftovers(place: Path) -> None:
    """Remove temporary folders that killed processes left in this folder."""
    for found in place.glob(f".*-????????{SUFFIX}"):
        with contextlib.suppress(OSError):  # in use, gone, or the file system has no locks
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
            continue  # another process removed it as a leftover before it was locked
        with contextlib.suppress(OSError):  # a file system without locks: leftovers stay
            fcntl.flock(lock, fcntl.LOCK_EX)
        if fresh.exists():
            return fresh, lock
        os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
