"""Files of rows for tests of added data."""

import json
import os
from pathlib import Path

from jobs.own_data.registry import Published
from jobs.own_data.staging import staging_folder
from jobs.service.data_adder import DataAdder, NewFile
from jobs.settings import Settings


def rows(*outputs: str) -> bytes:
    """Alpaca rows with these answers, as JSONL."""
    return "".join(f"{json.dumps({'instruction': 'Say it.', 'output': output})}\n" for output in outputs).encode()


def add(settings: Settings, content: bytes, filename: str = "support.jsonl", **values: object) -> Published:
    """Add a file as the API does: staged, checked and published by a process of its own."""
    with staging_folder(settings.home) as folder:
        path = folder / "content"
        path.write_bytes(content)
        return DataAdder().add(NewFile(path, filename, **values), settings)  # type: ignore[arg-type]


def list_files(home: Path) -> set[str]:
    """Paths of the files of added data, but those of git and the lock."""
    place = home / "own-data"
    walked = os.walk(place)  # folders that are removed meanwhile count as empty
    found = {Path(folder, name).relative_to(place).as_posix() for folder, _, names in walked for name in names}
    return {path for path in found if not path.startswith("registry/") and path != "lock"}
