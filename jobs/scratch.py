"""Temporary folders for processes that may be killed: the parent makes the folder and removes it afterwards.

If the parent was killed too, the next process that makes one removes it: a folder is locked while its users live.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

SCRATCH = "TUNEYARD_SCRATCH"  # such a folder, for the process that is started
Use = Literal["planner", "job", "single-plan"]
YOUNG_SECONDS = 60.0  # between making a folder and locking it


class Scratch(NamedTuple):
    """A folder and the lock on it, which whoever uses it inherits."""

    folder: Path
    lock: int

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


def make_scratch(use: Use, place: str | None = None) -> Scratch:
    """A new folder, in `place` or where temporary files go; those of the dead are removed. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix=_prefix(use), dir=place))
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        folder.rmdir()
        raise
    sweep(folder.parent)
    return Scratch(folder, lock)


@contextlib.contextmanager
def lending_scratch(use: Use) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Yield what to add to the environment of a process that gets such a folder, and the descriptors to pass to it.

    Both are empty if no folder can be made: a process that needs temporary files reports that itself.
    """
    try:
        scratch = make_scratch(use)
    except OSError:
        yield {}, []
        return
    try:
        yield {SCRATCH: str(scratch.folder)}, [scratch.lock]
    finally:
        scratch.remove()


def use_scratch() -> None:
    """Make Python's temporary files of this process in the folder that it was given, if any."""
    if folder := os.environ.pop(SCRATCH, None):
        tempfile.tempdir = folder


def sweep(place: Path) -> None:
    """Remove the folders in `place` that nobody uses any more."""
    for use in get_args(Use):
        for folder in place.glob(f"{_prefix(use)}*"):
            with contextlib.suppress(OSError):
                _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(lock)
        is_ours = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if is_ours and time.time() - found.st_mtime > YOUNG_SECONDS:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _prefix(use: str) -> str:
    return f"tuneyard-{use}-"
