"""Temporary folders for processes that may be killed: the parent makes the folder and removes it afterwards.

If the parent was killed too, the next process that makes one removes it.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from sft.files.temporary_folders import LockedFolder, make_locked_folder, remove_unused

SCRATCH = "TUNEYARD_SCRATCH"  # such a folder, for the process that is started
Use = Literal["planner", "job", "single-plan", "adding", "generation"]


def make_scratch(use: Use, place: Path | None = None) -> LockedFolder:
    """Make a folder in `place` or the temporary folder, and remove those of dead processes. Raises OSError."""
    scratch = make_locked_folder(_prefix(use), place=place)
    sweep(scratch.folder.parent)
    return scratch


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
    """Let `tempfile` in this process use the folder that it was given, if any."""
    if folder := os.environ.pop(SCRATCH, None):
        tempfile.tempdir = folder


def sweep(place: Path) -> None:
    """Remove folders in `place` that no process uses any more."""
    for use in get_args(Use):
        remove_unused(place.glob(f"{_prefix(use)}*"), only_private=True)


def _prefix(use: str) -> str:
    return f"tuneyard-{use}-"
