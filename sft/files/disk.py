"""Raises out-of-space errors as DiskFull, and measures free space."""

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
NO_TEMPORARY = "No usable temporary directory"  # the error of `tempfile` has no class of its own
PROBE_BYTES = 1 << 20
JOB_REMEDY = "lower save_total_limit, or set output_dir or checkpoint_dir to a folder on another disk"


@contextmanager
def telling_full_disk(place: Path, remedy: str) -> Iterator[None]:
    """Raise errors of the block as DiskFull if they say that the disk or a quota is full.

    Args:
        remedy: what to do besides freeing space, for the message.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if any(map(is_about_space, walk_causes(error))):
            raise DiskFull(f"no space left in {place}; free some, or {remedy}") from error
        raise


@contextmanager
def raising_disk_full(folder: Path, what: str, needed_bytes: int, remedy: str = JOB_REMEDY) -> Iterator[None]:
    """Raise errors of the block as DiskFull if no more can be written below `folder`.

    Args:
        what: what is being written, for the message.
        needed_bytes: the space it needs.
        remedy: what to do besides freeing space, for the message.
    """
    free_bytes = measure_free(folder)
    try:
        yield
    except Exception as error:
        if any(map(is_about_space, walk_causes(error))) or _is_full(folder) or measure_free(folder) < needed_bytes:
            raise DiskFull(describe_lack(folder, what, needed_bytes, free_bytes, remedy)) from error
        raise


def measure_free(folder: Path) -> int:
    """Free bytes on the disk of this folder, which need not exist yet."""
    return shutil.disk_usage(find_existing(folder)).free


def find_existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def describe_lack(folder: Path, what: str, needed_bytes: int, free_bytes: int, remedy: str = JOB_REMEDY) -> str:
    """The message of a DiskFull."""
    return (
        f"no space left in {folder}: {what} needs {_show(needed_bytes)} and {_show(free_bytes)} were free, "
        f"or a quota is used up; free some, {remedy}"
    )


def is_about_space(error: BaseException) -> bool:
    """Whether this error says that the disk or a quota is full."""
    if is_about_temporary(error) or (isinstance(error, OSError) and error.errno in FULL):
        return True
    if isinstance(error, sqlite3.OperationalError) and getattr(error, "sqlite_errorname", "") in SQLITE_FULL:
        return True
    # Messages of safetensors, and of MLflow and `shutil.copytree`, which collect the errors of several files as text.
    return any(mark in str(error) for number in FULL for mark in (f"os error {number})", f"[Errno {number}]"))


def is_about_temporary(error: BaseException) -> bool:
    """Whether `tempfile` found no folder that it can write to."""
    return isinstance(error, FileNotFoundError) and NO_TEMPORARY in str(error)


def _is_full(folder: Path) -> bool:
    """Whether the disk is full, found by writing to it, as torch's errors carry no errno."""
    try:
        with tempfile.TemporaryFile(dir=find_existing(folder)) as file:
            os.posix_fallocate(file.fileno(), 0, PROBE_BYTES)
    except OSError as error:
        return error.errno in FULL
    return False


def _show(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
