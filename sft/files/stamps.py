"""Whether files are still the same, without reading them."""

import os
from pathlib import Path

TEMPLATES_FOLDER = "additional_chat_templates"  # the only subfolder that tokenizers read

Stamp = tuple[str, int, int, int, int]


def stamp_folder(folder: Path) -> str:
    """Another text after a file of the model is written, replaced, added or removed. Links count as what they name.

    Of the subfolders, the one of chat templates is looked into. Raises OSError for a folder that can't be read.
    """
    stamps = _stamp_entries(folder)
    try:
        templates = _stamp_entries(folder / TEMPLATES_FOLDER)
    except OSError:
        templates = []
    return str((stamps, templates))


def _stamp_entries(folder: Path) -> list[Stamp]:
    with os.scandir(folder) as entries:
        return sorted(_describe(entry) for entry in entries)


def _describe(entry: os.DirEntry[str]) -> Stamp:
    try:
        found = entry.stat()
    except OSError:  # a link to nothing, to itself, or to where this process may not look
        return entry.name, 0, 0, 0, 0
    return entry.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
