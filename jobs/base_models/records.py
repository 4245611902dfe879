"""What is recorded about each added model: its files, when it was added, and by which API key."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid4

from jobs.settings import Settings

RECORDS = ".added"  # in the model root


@dataclass(frozen=True)
class Record:
    """How a model was added.

    Attributes:
        files: bytes of each file, by its path in the model's folder.
        digests: SHA-256 of each, if it was uploaded.
        source: the folder that it was copied from or links to, and `marks` its files' times then (ns).
    """

    added_at: str
    files: dict[str, int]
    owner: str | None = None
    digests: dict[str, str] | None = None
    source: str | None = None
    marks: dict[str, int] | None = None

    @property
    def time(self) -> datetime:
        """When it was added."""
        return datetime.fromisoformat(self.added_at)

    @property
    def owner_id(self) -> UUID | None:
        """The API key that added it."""
        return UUID(self.owner) if self.owner else None

    def suits(self, folder: Path) -> bool:
        """Whether the folder has the files that were added, and not others put in their place."""
        return all(_size_of(folder / path) == size for path, size in self.files.items())


def read_record(settings: Settings, name: str) -> Record | None:
    """The record of a model; None if there is none that can be read."""
    try:
        found = Record(**json.loads(_place(settings, name).read_text(encoding="utf-8")))
        _ = found.time, found.owner_id, found.files.items()  # raises where they are of another kind
        return found
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_record(settings: Settings, name: str, record: Record) -> None:
    """Write or replace the record of a model."""
    place = _place(settings, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{uuid4().hex}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(place)
    finally:
        with suppress(FileNotFoundError):
            fresh.unlink()


def remove_record(settings: Settings, name: str) -> None:
    """Remove the record of a model, if there is one."""
    with suppress(OSError):
        _place(settings, name).unlink()


def _place(settings: Settings, name: str) -> Path:
    return settings.model_root / RECORDS / f"{name}.json"


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
