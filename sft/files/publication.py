"""Publishes folders atomically: written beside their place, synced to disk, then renamed.

Leftovers of a killed process are removed by the next publication.
"""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sft.files.temporary_folders import fresh_folder

# Context entered around the rename; raises if this process may not publish (any more).
Publishing = Callable[[], AbstractContextManager[None]]


@contextmanager
def publish_folder(folder: Path, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that replaces it when the block ends without an error.

    With `replace` an existing folder is replaced; without it the existing one stays and the new one is dropped (two
    processes that make the same content).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with fresh_folder(folder) as temporary:
        yield temporary
        allowed = read_creation_mode(temporary)
        for path in temporary.rglob("*"):  # some writers, safetensors among them, make files private to their owner
            path.chmod(allowed if path.is_dir() else 0o666 & allowed)
        temporary.chmod(allowed)
        sync_tree(temporary)
        _put_in_place(temporary, folder, replace)
        sync_path(folder.parent)


def read_creation_mode(folder: Path) -> int:
    """The mode of a folder that is created in `folder`, which depends on the umask.

    Found by creating one: os.umask reads the umask by setting it, and threads that do so at once may leave a wrong one.
    """
    probe = Path(tempfile.mkdtemp(dir=folder)) / "probe"
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    shutil.rmtree(probe.parent)
    return mode


def _put_in_place(temporary: Path, folder: Path, replace: bool) -> None:
    """Rename; a folder that another process publishes at the same moment is replaced or kept, as `replace` says."""
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
    """Remove a folder atomically: rename it, then delete it. No error if it does not exist."""
    with contextlib.suppress(FileNotFoundError), fresh_folder(folder) as former:
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
