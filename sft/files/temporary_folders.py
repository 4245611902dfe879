"""Makes temporary folders, and removes those that killed processes left behind.

Each of the latter kind is locked while a process uses it, so that others can tell leftovers from folders in use.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from sft.errors import DiskFull

SUFFIX = ".tuneyard"


class LockedFolder(NamedTuple):
    """A folder and the descriptor of its lock, which a child process holds too if it inherits the descriptor."""

    folder: Path
    lock: int

    def remove(self) -> None:
        """Remove the folder and its content."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """An empty folder that is removed after the block. Raises DiskFull if none can be made."""
    try:
        folder = TemporaryDirectory(prefix=prefix)
    except OSError as error:  # full, read-only, or no writable folder
        raise DiskFull(
            f"no temporary folder can be made ({error}); free some space, or set TMPDIR to a folder that has some"
        ) from error
    with folder as made:
        yield Path(made)


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Make an empty folder beside `folder`, removed after the block unless renamed; removes leftovers first."""
    remove_unused(folder.parent.glob(f".*-????????{SUFFIX}"))
    fresh = make_locked_folder(f".{folder.name}-", SUFFIX, folder.parent)
    try:
        yield fresh.folder
    finally:
        fresh.remove()


def make_locked_folder(prefix: str, suffix: str = "", place: Path | None = None) -> LockedFolder:
    """A new, empty folder in `place`, or where temporary files go. Raises OSError."""
    while True:
        folder = Path(tempfile.mkdtemp(suffix, prefix, place))
        try:
            lock = _open(folder)
        except FileNotFoundError:
            continue  # another process removed it as a leftover before it was locked
        with contextlib.suppress(OSError):  # a file system without locks: leftovers stay
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return LockedFolder(folder, lock)
        os.close(lock)


def remove_unused(folders: Iterable[Path], only_private: bool = False) -> None:
    """Remove those of these folders that no process has locked.

    Args:
        only_private: skip folders of other accounts and those that others can open: any account can make a folder in
            the system's temporary folder.
    """
    for folder in folders:
        with contextlib.suppress(OSError):  # in use, gone, or the file system has no locks
            lock = _open(folder)
            try:
                if not only_private or _is_private(lock):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _is_private(opened: int) -> bool:
    found = os.fstat(opened)
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
