"""Publish the folder of a download atomically."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneyard_client.errors import ClientError

FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)  # such as /proc, in which root may write


def check_free(folder: Path) -> None:
    """Check that a folder can be created here. Raises ClientError if something exists or the name is invalid."""
    try:
        obstacle = _find_obstacle(folder)
    except (OSError, ValueError) as error:
        obstacle = f"can't be a folder ({getattr(error, 'strerror', None) or error})"
    if obstacle:
        raise ClientError(f"{folder} {obstacle}; choose another folder", code="folder_exists")


def _find_obstacle(folder: Path) -> str | None:
    if folder.name in ("", ".."):
        return "is not a new folder"
    if folder.is_symlink():
        return "is a link"
    if folder.is_dir() and any(folder.iterdir()):
        return "is not empty"
    if folder.exists() and not folder.is_dir():
        return "is a file"
    parent = next(place for place in folder.absolute().parents if place.exists())
    if not parent.is_dir():
        return f"lies below {parent}, which is a file"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"lies in {parent}, which is not writable"


@contextmanager
def publish_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder on the disk of `folder`; it is renamed to `folder` when the block ends without an error.

    It is synced first, so that after a power loss the folder is there whole or not at all.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", dir=folder.parent))
    try:
        fresh = temporary / "fresh"
        fresh.mkdir()  # permissions follow the umask; mkdtemp's folder is its owner's alone
        yield fresh
        for path in (*fresh.rglob("*"), fresh):
            _sync(path)
        fresh.rename(folder)  # replaces an empty folder, fails on any other
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
