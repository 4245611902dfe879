"""Atomic training checkpoints, verified by the hashes of their files.

A checkpoint is written to a hidden folder, synced to disk, sealed with a manifest of its files' hashes and renamed.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

from sft.checkpoints.best import find_best
from sft.files.publication import sync_path, sync_tree

logger = logging.getLogger(__name__)

MANIFEST = "complete.json"
STAGE = ".saving"  # in the checkpoints' folder: checkpoints being written or deleted
STATE = "trainer_state.json"
PRECISION = "precision.json"  # the `mixed_precision` that was chosen: a resumed run keeps it
_NAME = re.compile(r"checkpoint-([0-9]+)")


def stage_checkpoint(directory: Path, step: int) -> Path:
    """Make an empty folder to write the checkpoint of this step to; `publish_checkpoint` renames it into place."""
    clear_leftovers(directory)
    folder = staged_folder(directory, step)
    folder.mkdir(parents=True)
    return folder


def staged_folder(directory: Path, step: int) -> Path:
    """The folder that `stage_checkpoint` makes."""
    return directory / STAGE / f"checkpoint-{step}"


def publish_checkpoint(staged: Path) -> Path:
    """Seal a staged checkpoint and rename it into place, replacing a damaged one of that step. Returns its path."""
    directory = staged.parents[1]
    seal_checkpoint(staged)
    target = directory / staged.name
    if target.is_dir():
        _discard(target)
    staged.rename(target)
    sync_path(directory)
    shutil.rmtree(staged.parent)
    return target


def seal_checkpoint(folder: Path) -> None:
    """Write the manifest with name, size and hash of each file, and sync everything to disk."""
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    sync_tree(folder)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(_render(files), encoding="utf-8")
    sync_path(temporary)
    temporary.replace(folder / MANIFEST)
    sync_path(folder)


def is_complete(folder: Path) -> bool:
    """Whether every file in the manifest exists with its size; a quick check that reads no contents."""
    return find_damage(folder, read=False) is None


def is_whole(folder: Path) -> bool:
    """Whether the checkpoint's files match the hashes in its manifest."""
    return find_damage(folder) is None


def find_damage(folder: Path, read: bool = True) -> str | None:
    """Explain what is wrong with a checkpoint; None if nothing is. Without `read`, hashes are not checked."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        files = json.loads(text)["files"]
        if text != _render(files):
            return f"{MANIFEST} was changed"
        places = {Path(name) for name in (*files, MANIFEST)}
        wanted = {folder / place for place in places.union(*(place.parents for place in places))}
        found = {folder, *folder.rglob("*")}
        if wanted != found:
            names = sorted(path.relative_to(folder).as_posix() for path in wanted ^ found)
            return f"missing or not part of it: {', '.join(names)}"
        if linked := [path.name for path in found if path.is_symlink()]:
            return f"{linked[0]} is a link"
        for name, facts in files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                return f"{name} is not as long as it was"
            if read and _hash(path) != facts["sha256"]:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return f"{MANIFEST} or a file it names can't be read ({type(error).__name__})"
    return None


def find_newest_checkpoint(directory: Path, needs_best: bool = False) -> Path | None:
    """The intact `checkpoint-N` with the highest N; damaged ones are skipped.

    With `needs_best` its run's best checkpoint so far must be intact too, as early stopping goes back to that one.
    """
    for path in list_checkpoints(directory):
        damage = find_damage(path) or (find_best_damage(path) if needs_best else None)
        if damage is None:
            return path
        logger.warning("Skipped checkpoint %s: %s", path, damage)
    return None


def list_checkpoints(directory: Path) -> list[Path]:
    """Every `checkpoint-N`, intact or not, the highest N first."""
    found = [(int(match[1]), path) for path in directory.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def read_precision(directory: Path) -> str | None:
    """The `mixed_precision` recorded in the newest checkpoint; None without one."""
    for path in list_checkpoints(directory):
        if is_complete(path) and (path / PRECISION).is_file():
            return str(json.loads((path / PRECISION).read_text(encoding="utf-8"))["mixed_precision"])
    return None


def find_best_damage(folder: Path) -> str | None:
    """Explain what is wrong with the best checkpoint of this checkpoint's run; None if nothing is."""
    best = find_best(json.loads((folder / STATE).read_text(encoding="utf-8"))["log_history"])
    if best is None or folder.name == f"checkpoint-{best.step}":
        return None
    damage = find_damage(folder.with_name(f"checkpoint-{best.step}"))
    return damage and f"the best one, of step {best.step}, is damaged: {damage}"


def rotate_checkpoints(newest: Path, limit: int, best_step: int | None, trusted: Iterable[Path]) -> None:
    """Delete the oldest checkpoints beyond `limit`, but never `newest` or that of `best_step`.

    Damaged ones are deleted first and do not count, and so are those of later steps, left by a run that had to go
    back. Hashes are checked again unless the folder is in `trusted`.
    """
    trusted, kept = set(trusted), 1
    best = newest.with_name(f"checkpoint-{best_step}")
    others = [path for path in list_checkpoints(newest.parent) if path != newest]
    kept += best in others
    for path in others:
        if path == best:
            continue
        is_later = int(path.name.rpartition("-")[2]) > int(newest.name.rpartition("-")[2])
        if kept >= limit or is_later or find_damage(path, read=path not in trusted) is not None:
            _discard(path)
        else:
            kept += 1
    shutil.rmtree(newest.parent / STAGE, ignore_errors=True)


def clear_leftovers(directory: Path) -> None:
    """Remove what an interrupted save left behind."""
    if (directory / STAGE).exists():
        shutil.rmtree(directory / STAGE)


def _discard(folder: Path) -> None:
    """Rename a checkpoint to the staging folder, then delete it: an interruption leaves no partial checkpoint."""
    stage = folder.parent / STAGE
    stage.mkdir(exist_ok=True)
    former = folder.rename(stage / f"{folder.name}-{uuid4().hex}")
    shutil.rmtree(former)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _render(files: Mapping[str, Mapping[str, object]]) -> str:
    return json.dumps({"files": files}, indent=2)
