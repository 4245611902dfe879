"""A full disk, told as what it is."""

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.errors import DiskFull, walk_causes

SQLITE_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE")
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_TEMPORARY = "No usable temporary directory"  # `tempfile` has no class for it
PROBE_BYTES = 1 << 20


@contextmanager
def telling_full_disk(folder: Path, what: str, needed_bytes: int) -> Iterator[None]:
    """What fails within the block because no more could be written below `folder` is raised as DiskFull.

    Args:
        what: is being written, for the message.
        needed_bytes: that it takes.
    """
    free_bytes = measure_free(folder)
    try:
        yield
    except Exception as error:
        if any(map(is_about_space, walk_causes(error))) or _is_full(folder) or measure_free(folder) < needed_bytes:
            raise DiskFull(describe_lack(folder, what, needed_bytes, free_bytes)) from error
        raise


def measure_free(folder: Path) -> int:
    """Bytes free where this folder is or will be."""
    return shutil.disk_usage(find_existing(folder)).free


def find_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def describe_lack(folder: Path, what: str, needed_bytes: int, free_bytes: int) -> str:
    """The message of a DiskFull."""
    return (
        f"no space left in {folder}: {what} needs {_show(needed_bytes)} and {_show(free_bytes)} were free, "
        "or a quota is used up; free some, lower save_total_limit, or set output_dir or checkpoint_dir to a folder on "
        "another disk"
    )


def is_about_space(error: BaseException) -> bool:
    """Whether this error, whatever it came from, says that no more could be written."""
    if is_about_temporary(error) or (isinstance(error, OSError) and error.errno in FULL):
        return True
    if isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorname", "") in SQLITE_FULL:
        return True
    return any(f"os error {number})" in str(error) for number in FULL)  # safetensors' way to say it


def is_about_temporary(error: BaseException) -> bool:
    """Whether Python has found no folder for temporary files that it could write to."""
    return isinstance(error, FileNotFoundError) and NO_TEMPORARY in str(error)


def _is_full(folder: Path) -> bool:
    """Whether nothing more can be written: torch's errors carry no number."""
    try:
        with tempfile.TemporaryFile(dir=find_existing(folder)) as file:
            os.posix_fallocate(file.fileno(), 0, PROBE_BYTES)
    except OSError as error:
        return error.errno in FULL
    return False


def _show(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
