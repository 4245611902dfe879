"""Whether files are still the same, without reading them."""

import os
from pathlib import Path


def stamp_folder(folder: Path) -> str:
    """Another text after a file of the folder is written, replaced, added or removed. Links count as what they name."""
    with os.scandir(folder) as entries:
        return str(sorted(_describe(entry) for entry in entries))


def _describe(entry: os.DirEntry[str]) -> tuple[str, int, int, int, int]:
    try:
        found = entry.stat()
    except OSError:  # a link to nothing, to itself, or to where this process may not look
        return entry.name, 0, 0, 0, 0
    return entry.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
