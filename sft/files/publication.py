"""Folders that are there whole or not at all: made beside their place, synced to disk, then renamed.

What a killed maker leaves beside them is removed by the next one.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sft.files.fresh_folders import fresh_folder

# Entered while something is put in its place; raises where this process may not (any more).
Publishing = Callable[[], AbstractContextManager[None]]


@contextmanager
def publish_folder(folder: Path, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place when the block ends without an error.

    With `replace` a former folder of that name goes; without it the former one stays and the new one is dropped
    (two makers of the same content).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with fresh_folder(folder) as temporary:
        yield temporary
        allowed = ~read_umask()
        temporary.chmod(0o777 & allowed)
        for path in temporary.rglob("*"):  # some writers, safetensors' among them, make files only their owner reads
            path.chmod((0o777 if path.is_dir() else 0o666) & allowed)
        sync_tree(temporary)
        _put_in_place(temporary, folder, replace)
        sync_path(folder.parent)


def read_umask() -> int:
    """What this process gives nobody else. It can't be asked for without setting it: nothing opens up meanwhile."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def _put_in_place(temporary: Path, folder: Path, replace: bool) -> None:
    """Rename; whoever else does so at the same moment is either replaced or left, as `replace` says."""
    while True:
        if folder.exists():
            if not replace:
                return
            discard_folder(folder)
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def discard_folder(folder: Path) -> None:
    """Remove a folder so that nobody sees it half gone: renamed first, then emptied. No error if it is gone already."""
    with fresh_folder(folder) as former, contextlib.suppress(FileNotFoundError):  # another process has
        folder.rename(former / folder.name)


def sync_tree(folder: Path) -> None:
    """Write every file below a folder, and its folders, to disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync_path(path)
    sync_path(folder)


def sync_path(path: Path) -> None:
    """fsync one file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
