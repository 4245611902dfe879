"""Training checkpoints that are there whole or not at all, and known by their content to be so.

A checkpoint is made in a hidden folder, synced to disk, sealed with a manifest of its files' hashes and renamed.
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
STAGE = ".saving"  # in the checkpoints' folder: what is being made, and what is being deleted
STATE = "trainer_state.json"
PRECISION = "precision.json"  # what `mixed_precision` came to: a resumed run must not choose anew
_NAME = re.compile(r"checkpoint-([0-9]+)")


def stage_checkpoint(directory: Path, step: int) -> Path:
    """An empty folder to make the checkpoint of this step in; `publish_checkpoint` puts it in its place."""
    clear_leftovers(directory)
    folder = staged_folder(directory, step)
    folder.mkdir(parents=True)
    return folder


def staged_folder(directory: Path, step: int) -> Path:
    """The folder that `stage_checkpoint` makes."""
    return directory / STAGE / f"checkpoint-{step}"


def publish_checkpoint(staged: Path) -> Path:
    """Seal what was made and put it in its place, for a torn one of that step if need be. Returns the place."""
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
    """Write the manifest that says which files there are, how long each is and its hash, and all of it to disk."""
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
    """Whether every file the checkpoint was sealed with is there in full, going by name and size: a quick look."""
    return find_damage(folder, read=False) is None


def is_whole(folder: Path) -> bool:
    """Whether the checkpoint holds exactly what it was sealed with, going by its files' hashes."""
    return find_damage(folder) is None


def find_damage(folder: Path, read: bool = True) -> str | None:
    """What is wrong with a checkpoint; None when nothing is. Without `read` contents are not looked at."""
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
    """The whole `checkpoint-N` with the highest N; damaged ones are passed over.

    With `needs_best` it must be its run's best so far, or that one must be whole too (early stopping goes back to it).
    """
    for path in list_checkpoints(directory):
        damage = find_damage(path) or (find_best_damage(path) if needs_best else None)
        if damage is None:
            return path
        logger.warning("Passed over %s: %s", path, damage)
    return None


def list_checkpoints(directory: Path) -> list[Path]:
    """Every `checkpoint-N`, whole or not, the highest N first."""
    found = [(int(match[1]), path) for path in directory.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def read_precision(directory: Path) -> str | None:
    """The `mixed_precision` that the newest checkpoint was trained in; None when there is none that says so."""
    for path in list_checkpoints(directory):
        if is_complete(path) and (path / PRECISION).is_file():
            return str(json.loads((path / PRECISION).read_text(encoding="utf-8"))["mixed_precision"])
    return None


def find_best_damage(folder: Path) -> str | None:
    """What is wrong with the best checkpoint of the run that this whole one is of."""
    best = find_best(json.loads((folder / STATE).read_text(encoding="utf-8"))["log_history"])
    if best is None or folder.name == f"checkpoint-{best.step}":
        return None
    damage = find_damage(folder.with_name(f"checkpoint-{best.step}"))
    return damage and f"the best one, of step {best.step}, is damaged: {damage}"


def rotate_checkpoints(newest: Path, limit: int, best_step: int | None, trusted: Iterable[Path]) -> None:
    """Delete the oldest checkpoints beyond `limit`, never `newest`, which was just made, nor that of `best_step`.

    Those that are damaged go first and do not count. So do those of later steps: they are of a run that had to go
    back. Contents are read again unless the folder is in `trusted`.
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
    """Remove what a save that was cut off left behind."""
    if (directory / STAGE).exists():
        shutil.rmtree(directory / STAGE)


def _discard(folder: Path) -> None:
    """Take a checkpoint out of sight at once, then delete it: cut off, this leaves nothing that looks like one."""
    stage = folder.parent / STAGE
    stage.mkdir(exist_ok=True)
    former = folder.rename(stage / f"{folder.name}-{uuid4().hex}")
    shutil.rmtree(former)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _render(files: Mapping[str, Mapping[str, object]]) -> str:
    return json.dumps({"files": files}, indent=2)
