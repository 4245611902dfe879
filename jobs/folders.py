"""Paths of a job's files, and checks of the state folder."""

import os
import socket
import sys
import tempfile
from pathlib import Path
from uuid import UUID

from jobs.settings import Settings
from sft.config import SFTConfig
from sft.errors import StackError


def job_folder(settings: Settings, config: SFTConfig, job_id: UUID | str) -> Path:
    """Path of the job's folder, without creating it. Raises InvalidConfig if it is outside the allowed roots."""
    return settings.output_folder(config.output_dir) / str(job_id)


def checkpoint_folder(settings: Settings, config: SFTConfig, job_id: UUID | str) -> Path:
    """Folder of the job's `checkpoint-N` folders. Raises InvalidConfig as `job_folder` does."""
    if config.checkpoint_dir:
        return settings.output_folder(config.checkpoint_dir) / str(job_id)
    return job_folder(settings, config, job_id) / "checkpoints"


def make_home(home: Path) -> None:
    """Create the state folder, and try what the stack needs there: private files, renames, links.

    Raises:
        StackError: it can't be created or written to, or its file system lacks one of these.
    """
    try:
        os.fsencode(str(home)).decode()
        str(home).encode()
    except UnicodeError as error:
        raise StackError(
            f"the state folder's name {str(home)!r} is not UTF-8 here; set TUNEYARD_HOME to another path, or unset "
            "PYTHONUTF8"
        ) from error
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".trial-", dir=home) as scratch:
            _try_folder(Path(scratch))
    except OSError as error:
        place = f" ({error.filename})" if error.filename and str(error.filename) != str(home) else ""
        raise StackError(
            f"the state folder {home} can't be used: {error.strerror or error}{place}; "
            "set TUNEYARD_HOME to a folder of yours on a local disk"
        ) from error


def _try_folder(scratch: Path) -> None:
    """Raise OSError if one of these does not work in this folder."""
    first = scratch / "first"
    first.touch()
    first.chmod(0o600)
    if first.stat().st_mode & 0o777 != 0o600:
        raise OSError(0, "its file system keeps no access rights")
    first.rename(scratch / "second")
    (scratch / "link").symlink_to(scratch / "second")
    if sys.platform == "linux":  # elsewhere the socket's path may be too long
        folder = os.open(scratch, os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(f"/proc/self/fd/{folder}/socket")
        finally:
            os.close(folder)
