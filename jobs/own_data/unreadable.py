"""`UnreadableFiles`: files whose rows could not be read. What is known of one is kept, its content is not."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from jobs.own_data.naming import FILE_ID, write_file_id
from jobs.own_data.registry import FOLDER
from jobs.own_data.staging import noticing_full_disk

UNREADABLE = "unreadable"
MOST_KEPT = 1000  # of one owner; a further one takes the place of the oldest
PROBLEM_CHARACTERS = 2000
_RECORD = re.compile(rf"{FILE_ID.pattern}\.json")


@dataclass(frozen=True)
class UnreadableFile:
    """A file that was refused; `problem` says why."""

    id: str
    filename: str
    size: int  # bytes
    created_at: datetime
    problem: str
    owner: UUID | None = None


class UnreadableFiles:
    """The records below a state folder, which need not exist yet. Safe for threads and processes."""

    def __init__(self, home: Path) -> None:
        self.folder = home / FOLDER / UNREADABLE

    def add(self, filename: str, size: int, sha256: str, problem: str, owner: UUID | None = None) -> UnreadableFile:
        """Record a file. The same content under the same name, sent again, has the same id. Raises DiskFull."""
        digest = hashlib.sha256(f"{owner}\n{sha256}\n{filename}".encode()).hexdigest()
        file_id = write_file_id(digest)
        before = self.find(file_id)
        created_at = before.created_at if before else datetime.now(UTC)
        file = UnreadableFile(file_id, filename, size, created_at, problem[:PROBLEM_CHARACTERS], owner)
        with noticing_full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if sum(1 for _ in self.folder.glob("*.json")) >= MOST_KEPT:  # of all owners, without reading them
                for oldest in self.list_all(owner)[MOST_KEPT - 1 :]:
                    self.remove(oldest)
            fresh = self.folder / f".{uuid4().hex}"
            try:
                fresh.write_text(_write(file), encoding="utf-8")
                fresh.replace(self._place(file.id))
            finally:
                fresh.unlink(missing_ok=True)
        return file

    def find(self, file_id: str, owner: UUID | None = None) -> UnreadableFile | None:
        """The record of this id; None if there is none, or the owner (None: anyone) does not see it."""
        file = _read(self._place(file_id)) if FILE_ID.fullmatch(file_id) else None
        return file if file is not None and owner in (None, file.owner) else None

    def list_all(self, owner: UUID | None = None) -> list[UnreadableFile]:
        """The records that the owner (None: anyone) sees, newest first."""
        paths = [path for path in self.folder.glob("*.json") if _RECORD.fullmatch(path.name)]
        found = [file for path in paths if (file := _read(path)) is not None and owner in (None, file.owner)]
        return sorted(found, key=lambda file: (file.created_at, file.id), reverse=True)

    def remove(self, file: UnreadableFile) -> None:
        """Remove a record."""
        self._place(file.id).unlink(missing_ok=True)

    def _place(self, file_id: str) -> Path:
        return self.folder / f"{file_id}.json"


def _write(file: UnreadableFile) -> str:
    plain = {"created_at": file.created_at.isoformat(), "owner": file.owner and str(file.owner)}
    return json.dumps(vars(file) | plain)


def _read(path: Path) -> UnreadableFile | None:
    """Read a record; None if there is none, or it is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        values = json.loads(path.read_text(encoding="utf-8"))
        owner = UUID(values["owner"]) if values["owner"] else None
        return UnreadableFile(**{**values, "created_at": datetime.fromisoformat(values["created_at"]), "owner": owner})
    return None
