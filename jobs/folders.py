"""Paths of a job's files, and checks of the state folder."""

import os
import socket
import sys
import tempfile
from pathlib import Path
from uuid import UUID

from jobs.settings import Settings
from sft.config import SFTConfig
from sft.errors import InvalidConfig, StackError
from sft.files.places import find_foreign, find_temporary, follow


def output_folder(settings: Settings, output_dir: str | None) -> Path:
    """The folder in which a job with this `output_dir` creates its own. Creates nothing.

    Raises:
        InvalidConfig: it is outside the allowed roots, links resolved, or another account may write to it.
    """
    further = [find_temporary(), *settings.allowed_output_roots]
    is_absolute = output_dir is not None and Path(output_dir).is_absolute()
    allowed = [settings.output_root, *further] if is_absolute else [settings.output_root]
    folder = follow(output_dir or "", settings.output_root, allowed)
    if folder is None:
        roots = ", ".join(str(root) for root in allowed)
        raise InvalidConfig(f"output_dir must be in one of {roots}, got {output_dir!r}")
    shared = find_temporary()
    if follow(str(folder), shared) and (foreign := find_foreign(folder, shared)):
        raise InvalidConfig(
            f"output_dir: another account may write to {foreign}; name a folder of this account, got {output_dir!r}"
        )
    return folder


def job_folder(settings: Settings, config: SFTConfig, job_id: UUID | str) -> Path:
    """Path of the job's folder, without creating it. Raises InvalidConfig if it is outside the allowed roots."""
    return output_folder(settings, config.output_dir) / str(job_id)


def checkpoint_folder(settings: Settings, config: SFTConfig, job_id: UUID | str) -> Path:
    """Folder of the job's `checkpoint-N` folders. Raises InvalidConfig as `job_folder` does."""
    if config.checkpoint_dir:
        return output_folder(settings, config.checkpoint_dir) / str(job_id)
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
