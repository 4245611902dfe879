"""`Uploads`: files that arrive in parts, over several requests and perhaps after a lost connection.

An upload is a folder; each part is a file in it, complete or absent, named by its number, size and SHA-256. A part that
is sent again replaces the one before. What is not completed in time is removed by the next one that begins.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from jobs.errors import InvalidUpload, UploadNotFound, UploadTooLarge
from jobs.own_data.naming import choose_name, find_suffix, read_filename
from jobs.own_data.registry import FOLDER
from jobs.own_data.staging import check_space, locked, noticing_full_disk
from sft.files.publication import sync_path

UPLOADS = "uploads"
RECORD = "upload.json"
MAX_PARTS = 10_000
MAX_OPEN = 100  # of one owner
PIECE_BYTES = 2**20
_ID = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"(\d{5})-(\d+)-([0-9a-f]{64})")


@dataclass(frozen=True)
class Part:
    """A part that has arrived."""

    number: int
    size: int
    sha256: str
    path: Path


@dataclass(frozen=True)
class Upload:
    """An upload. `size`, in bytes, and `sha256`, if it is not None, are those of the whole file."""

    id: str
    filename: str
    name: str | None
    size: int
    sha256: str | None
    owner: UUID | None
    expires_at: datetime
    parts: tuple[Part, ...] = ()


class Uploads:
    """The uploads below a state folder. Safe for threads and processes."""

    def __init__(self, home: Path, keep_hours: float, max_bytes: int) -> None:
        self.folder = home / FOLDER / UPLOADS
        self._keep = timedelta(hours=keep_hours)
        self._max_bytes = max_bytes

    def begin(
        self, filename: str, size: int, name: str | None = None, sha256: str | None = None, owner: UUID | None = None
    ) -> Upload:
        """Begin an upload.

        Raises:
            InvalidConfig: the name or the file's suffix is not valid.
            InvalidUpload: the owner has too many open ones.
            UploadTooLarge: the file is larger than allowed.
            DiskFull: there is no space for it.
        """
        filename = read_filename(filename, "filename")
        find_suffix(filename, "filename")
        choose_name(name, filename)
        check_size(size, self._max_bytes)
        with noticing_full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.remove_expired()
            if sum(upload.owner == owner for upload in self._list()) >= MAX_OPEN:
                raise InvalidUpload(f"there are {MAX_OPEN} open uploads; complete or delete some")
            check_space(self.folder, 2 * size)  # its parts, and the whole
            upload = Upload(uuid4().hex, filename, name, size, sha256, owner, datetime.now(UTC) + self._keep)
            make_folder(self.folder / upload.id, _write(upload))
        return upload

    def get(self, upload_id: str, owner: UUID | None = None) -> Upload:
        """Find an upload. Raises UploadNotFound if there is none, or the owner (None: anyone) does not see it."""
        upload = self._read(self.folder / upload_id) if _ID.fullmatch(upload_id) else None
        if upload is None or upload.expires_at < datetime.now(UTC) or owner not in (None, upload.owner):
            raise _not_found(upload_id)
        return upload

    def put(self, upload: Upload, number: int, received: Path, sha256: str) -> Part:
        """Make a file a part of an upload; it is moved. Parts that arrive at once are counted one after the other.

        Raises:
            InvalidUpload: with it the parts are larger than the file.
            UploadNotFound: the upload was removed meanwhile.
        """
        if not 1 <= number <= MAX_PARTS:
            raise InvalidUpload(f"number must be from 1 to {MAX_PARTS}, got {number}")
        size = received.stat().st_size
        target = self.folder / upload.id / f"{number:05}-{size}-{sha256}"
        sync_path(received)
        with self._changing(upload) as now:
            others = sum(part.size for part in now.parts if part.number != number)
            if size + others > upload.size:
                raise InvalidUpload(
                    f"part {number} has {size} bytes and makes the upload larger than its {upload.size} bytes: the "
                    f"other parts have {others}; send what is left of the file"
                )
            for part in now.parts:  # first, so that a killed process never leaves two of a number
                if part.number == number and part.path != target:
                    part.path.unlink(missing_ok=True)
            received.rename(target)
        return Part(number, size, sha256, target)

    def join(self, upload: Upload, target: Path, check: Callable[[], None] = lambda: None) -> str:
        """Write the whole file to `target`; returns its SHA-256. The parts stay, until `remove`.

        Args:
            check: called for each part; may raise.

        Raises:
            InvalidUpload: a part is missing or damaged, or the whole is not what was announced.
            UploadNotFound: the upload was removed meanwhile.
        """
        upload = self.get(upload.id)  # with the parts that have arrived since it was found
        numbers, size = [part.number for part in upload.parts], sum(part.size for part in upload.parts)
        if size > upload.size:
            raise InvalidUpload(
                f"the parts have {size} bytes and the upload {upload.size}; send smaller ones instead, or delete it"
            )
        if numbers != [*range(1, len(numbers) + 1)]:
            missing = next(number for number in range(1, MAX_PARTS + 1) if number not in numbers)
            if size == upload.size:
                raise InvalidUpload(
                    f"part {missing} is missing, though the parts have all {size} bytes: they must be numbered from 1 "
                    "without a gap; delete the upload and begin another"
                )
            raise InvalidUpload(f"part {missing} is missing; send it, then complete the upload")
        if size != upload.size:
            raise InvalidUpload(f"the parts have {size} bytes of {upload.size}; send the others and complete it")
        try:
            digest = join_parts(upload.parts, target, check=check)
        except FileNotFoundError as error:
            raise _not_found(upload.id) from error
        if upload.sha256 not in (None, digest):
            raise InvalidUpload(f"the file has the SHA-256 {digest}, not {upload.sha256}; send it again")
        return digest

    def remove(self, upload: Upload) -> None:
        """Remove an upload and its parts."""
        discard(self.folder / upload.id)

    def remove_expired(self) -> None:
        """Remove uploads that have expired, and what a killed process left of one that it began."""
        now = datetime.now(UTC)
        for folder in self.folder.glob("*"):
            upload = self._read(folder)
            if upload is None:
                discard_after(folder, self._keep)
            elif upload.expires_at < now:
                discard(folder)

    @contextmanager
    def _changing(self, upload: Upload) -> Iterator[Upload]:
        """Be the only one who adds a part, also among processes; yields the upload as it is now."""
        try:
            with locked(self.folder / upload.id):
                yield self.get(upload.id)
        except FileNotFoundError as error:
            raise _not_found(upload.id) from error

    def _list(self) -> list[Upload]:
        found = (self._read(folder) for folder in self.folder.glob("*"))
        return [upload for upload in found if upload is not None]

    def _read(self, folder: Path) -> Upload | None:
        """Read an upload; None if there is none, or it is damaged."""
        try:
            values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            names = sorted(path.name for path in folder.iterdir())
            found = {int(match[1]): match for name in names if (match := _PART.fullmatch(name))}
            parts = (Part(number, int(match[2]), match[3], folder / match[0]) for number, match in found.items())
            times = {"expires_at": datetime.fromisoformat(values["expires_at"])}
            owner = UUID(values["owner"]) if values["owner"] else None
            return Upload(**{**values, **times, "owner": owner, "parts": tuple(parts)})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def check_size(size: int, most: int) -> None:
    """Raise UploadTooLarge if a file of `size` bytes is larger than allowed."""
    if size > most:
        raise UploadTooLarge(f"bytes must be at most {most} (TUNEYARD_MAX_UPLOAD_BYTES), got {size}")


def make_folder(folder: Path, record: str) -> None:
    """Make the folder of an upload with its record, complete or not at all."""
    fresh = folder.with_name(f".{folder.name}")
    fresh.mkdir()
    (fresh / RECORD).write_text(record, encoding="utf-8")
    fresh.rename(folder)


def discard_after(folder: Path, keep: timedelta) -> None:
    """Remove what is no upload, as a killed process left it, once nothing has changed in it for so long."""
    with suppress(FileNotFoundError):
        if datetime.now(UTC).timestamp() - folder.stat().st_mtime > keep.total_seconds():
            discard(folder)


def discard(folder: Path) -> None:
    """Remove an upload's folder, which is renamed first: a part that arrives meanwhile finds it gone."""
    gone = folder.with_name(f".{folder.name.lstrip('.')}")
    with suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def join_parts(
    parts: Iterable[Part],
    target: Path,
    see: Callable[[bytes], None] = lambda piece: None,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Write parts to a new file, one after the other; returns its SHA-256.

    Args:
        see: called with each piece of the file.
        check: called for each part; may raise.

    Raises:
        InvalidUpload: a part is damaged.
        FileNotFoundError: a part was removed meanwhile.
    """
    whole = hashlib.sha256()
    with noticing_full_disk(target.parent), target.open("xb") as file:
        for part in parts:
            check()
            digest = hashlib.sha256()
            with part.path.open("rb") as content:
                while piece := content.read(PIECE_BYTES):
                    digest.update(piece)
                    whole.update(piece)
                    see(piece)
                    file.write(piece)
            if digest.hexdigest() != part.sha256:
                raise InvalidUpload(f"part {part.number} is damaged; send it again")
    return whole.hexdigest()


def _not_found(upload_id: str) -> UploadNotFound:
    return UploadNotFound(f"upload {upload_id!r:.80} not found; it was completed, deleted or has expired")


def _write(upload: Upload) -> str:
    values = vars(upload) | {"expires_at": upload.expires_at.isoformat(), "owner": upload.owner and str(upload.owner)}
    return json.dumps({name: value for name, value in values.items() if name != "parts"})
