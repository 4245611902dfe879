"""Training checkpoints that are known to be whole: each gets a manifest of its files once they are on disk."""

import json
import re
from pathlib import Path

from sft.publication import sync_path, sync_tree

MANIFEST = "complete.json"


def seal_checkpoint(folder: Path) -> None:
    """Write every file to disk, then the manifest that says which files there are and how long each is."""
    sync_tree(folder)
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(files, indent=2), encoding="utf-8")
    sync_path(temporary)
    temporary.replace(folder / MANIFEST)
    sync_path(folder)


def is_whole(folder: Path) -> bool:
    """Whether every file the checkpoint was sealed with is there in full."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def find_newest_checkpoint(checkpoint_dir: Path) -> Path | None:
    """The whole `checkpoint-N` with the highest N; torn ones are passed over."""
    found = (
        (int(match[1]), path)
        for path in checkpoint_dir.glob("checkpoint-*")
        if (match := re.search(r"-(\d+)$", path.name))
    )
    return next((path for _, path in sorted(found, reverse=True) if is_whole(path)), None)
