"""`FileUploads`: files that arrive in parts whose order is told last, as OpenAI's uploads do.

An upload is a folder with a record and the parts, each complete or absent and named by its content: one that is sent
again after a lost connection is the same part. What an upload became stays to be asked for as long as the upload was
valid, without the parts. What is not completed in time is removed by the next one that begins.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from filelock import FileLock, Timeout

from jobs.errors import InvalidUpload, UploadNotFound
from jobs.own_data.naming import read_filename
from jobs.own_data.registry import FOLDER
from jobs.own_data.staging import check_space, locked, noticing_full_disk
from jobs.own_data.uploads import (
    MAX_OPEN,
    MAX_PARTS,
    RECORD,
    Part,
    check_size,
    discard,
    discard_after,
    join_parts,
    make_folder,
)
from sft.files.publication import sync_path

UPLOADS = "file-uploads"
LOCK = "lock"
PART_BYTES = 64 * 2**20
POLL_SECONDS = 0.1
PENDING, COMPLETED, CANCELLED, EXPIRED = "pending", "completed", "cancelled", "expired"
_ID = re.compile(r"upload_([0-9a-f]{32})")
_PART = re.compile(r"(\d+)-([0-9a-f]{64})")


@dataclass(frozen=True)
class FileUpload:
    """An upload.

    Attributes:
        size: of the whole file, in bytes.
        file_id: of what it became, if it is completed.
        part_ids: with which it was completed.
    """

    id: str
    filename: str
    size: int
    owner: UUID | None
    created_at: datetime
    expires_at: datetime
    status: str = PENDING
    file_id: str | None = None
    part_ids: tuple[str, ...] = ()


class FileUploads:
    """The uploads below a state folder. Safe for threads and processes."""

    def __init__(self, home: Path, keep_hours: float, max_bytes: int) -> None:
        self.folder = home / FOLDER / UPLOADS
        self._keep = timedelta(hours=keep_hours)
        self._max_bytes = max_bytes

    def begin(self, filename: str, size: int, owner: UUID | None = None) -> FileUpload:
        """Begin an upload.

        Raises:
            InvalidConfig: the file's name is too long.
            InvalidUpload: the owner has too many open ones.
            UploadTooLarge: the file is larger than allowed.
            DiskFull: there is no space for it.
        """
        shown = read_filename(filename, "filename") or "upload"
        check_size(size, self._max_bytes)
        with noticing_full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.remove_expired()
            mine = [upload for upload in self._list() if upload.owner == owner and upload.status == PENDING]
            if len(mine) >= MAX_OPEN:
                raise InvalidUpload(f"there are {MAX_OPEN} open uploads; complete or cancel some")
            check_space(self.folder, 2 * size)  # its parts, and the whole
            now = datetime.now(UTC)
            upload = FileUpload(f"upload_{uuid4().hex}", shown, size, owner, now, now + self._keep)
            make_folder(self._place(upload), _write(upload))
        return upload

    def get(self, upload_id: str, owner: UUID | None = None) -> FileUpload:
        """Find an upload. Raises UploadNotFound if there is none, or the owner (None: anyone) does not see it."""
        upload = self._read(self.folder / upload_id) if _ID.fullmatch(upload_id) else None
        if upload is None or owner not in (None, upload.owner):
            raise _not_found(upload_id)
        return upload

    def put(self, upload: FileUpload, received: Path, sha256: str) -> str:
        """Make a file a part of an upload; it is moved. Returns the part's id.

        Raises:
            InvalidUpload: the upload has ended, or the part does not fit into it.
            UploadNotFound: the upload was removed meanwhile.
        """
        check_pending(upload)
        size = received.stat().st_size
        if size > upload.size:
            raise InvalidUpload(f"the part has {size} bytes and the whole file {upload.size}; send parts of the file")
        target = self._place(upload) / f"{size}-{sha256}"
        sync_path(received)
        try:
            with locked(self._place(upload)):  # parts that arrive at once are counted one after the other
                others = [part for part in self._list_parts(upload) if part.sha256 != sha256]
                if size + sum(part.size for part in others) > 2 * upload.size or len(others) >= MAX_PARTS:
                    raise InvalidUpload(
                        f"the upload of {upload.size} bytes has too many other parts; cancel it, begin another"
                    )
                received.rename(target)
        except FileNotFoundError as error:
            raise _not_found(upload.id) from error
        try:
            check_pending(self.get(upload.id))
        except InvalidUpload:
            target.unlink(missing_ok=True)
            raise
        return _name_part(upload, sha256)

    @contextmanager
    def taken(self, upload: FileUpload, wait: Callable[[], None]) -> Iterator[FileUpload]:
        """End an upload as the only one who does; yields it as it is now.

        Args:
            wait: called several times a second while another one does; may raise.

        Raises:
            UploadNotFound: it was removed meanwhile.
        """
        lock = FileLock(self._place(upload) / LOCK)
        if not self._place(upload).is_dir():  # the lock would make it
            raise _not_found(upload.id)
        while True:
            with suppress(Timeout):
                lock.acquire(timeout=POLL_SECONDS)
                break
            wait()
        try:
            yield self.get(upload.id)
        finally:
            lock.release()

    def join(
        self,
        upload: FileUpload,
        part_ids: Sequence[str],
        md5: str | None,
        target: Path,
        check: Callable[[], None] = lambda: None,
    ) -> str:
        """Write the whole file to `target`, in this order of the parts; returns its SHA-256. The parts stay.

        Args:
            md5: of the whole file, if it shall be checked.
            check: called for each part; may raise.

        Raises:
            InvalidUpload: the upload has ended, a part is not one of it, or the whole is not what was announced.
            UploadNotFound: the upload was removed meanwhile.
        """
        check_pending(upload)
        known = {_name_part(upload, part.sha256): part for part in self._list_parts(upload)}
        for place, part_id in enumerate(part_ids):
            if part_id not in known:
                raise InvalidUpload(f"part_ids[{place}] {part_id!r:.80} is not a part of this upload; send it first")
        parts = [replace(known[part_id], number=place) for place, part_id in enumerate(part_ids)]
        if (size := sum(part.size for part in parts)) != upload.size:
            raise InvalidUpload(f"the parts have {size} bytes and the upload {upload.size}; name all, in order")
        digest = hashlib.md5(usedforsecurity=False)
        try:
            sha256 = join_parts(parts, target, digest.update, check)
        except FileNotFoundError as error:
            raise _not_found(upload.id) from error
        if md5 is not None and md5.lower() != digest.hexdigest():
            raise InvalidUpload(
                f"md5: the parts have {digest.hexdigest()}, not {md5}; send the parts that differ again"
            )
        return sha256

    def end(
        self, upload: FileUpload, status: str, file_id: str | None = None, part_ids: Sequence[str] = ()
    ) -> FileUpload:
        """Record what an upload became, and remove its parts."""
        ended = replace(upload, status=status, file_id=file_id, part_ids=tuple(part_ids))
        folder = self._place(upload)
        with noticing_full_disk(folder):
            fresh = folder / f".{uuid4().hex}"
            fresh.write_text(_write(ended), encoding="utf-8")
            fresh.replace(folder / RECORD)
        for part in self._list_parts(upload):
            part.path.unlink(missing_ok=True)
        return ended

    def remove_expired(self) -> None:
        """Remove the parts of uploads that have ended, or whose process was killed then, and much later the records."""
        now = datetime.now(UTC)
        for folder in self.folder.glob("*"):
            upload = self._read(folder)
            if upload is None:
                discard_after(folder, self._keep)
            elif upload.expires_at + self._keep < now:
                discard(folder)
            elif upload.status != PENDING:
                for part in self._list_parts(upload):
                    part.path.unlink(missing_ok=True)

    def _place(self, upload: FileUpload) -> Path:
        return self.folder / upload.id

    def _list(self) -> list[FileUpload]:
        found = (self._read(folder) for folder in self.folder.glob("upload_*"))
        return [upload for upload in found if upload is not None]

    def _list_parts(self, upload: FileUpload) -> list[Part]:
        with suppress(FileNotFoundError):
            found = [(path, _PART.fullmatch(path.name)) for path in self._place(upload).iterdir()]
            return [Part(0, int(match[1]), match[2], path) for path, match in found if match]
        return []

    def _read(self, folder: Path) -> FileUpload | None:
        """Read an upload; None if there is none, or it is damaged."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            times = {name: datetime.fromisoformat(values[name]) for name in ("created_at", "expires_at")}
            owner = UUID(values["owner"]) if values["owner"] else None
            upload = FileUpload(**{**values, **times, "owner": owner, "part_ids": tuple(values["part_ids"])})
            is_late = upload.status == PENDING and upload.expires_at < datetime.now(UTC)
            return replace(upload, status=EXPIRED) if is_late else upload
        return None


def check_pending(upload: FileUpload) -> None:
    """Raise InvalidUpload if an upload has ended."""
    if upload.status != PENDING:
        raise InvalidUpload(f"upload {upload.id} is {upload.status}; begin another one")


def _not_found(upload_id: str) -> UploadNotFound:
    return UploadNotFound(f"upload {upload_id!r:.80} not found; it may have expired")


def _name_part(upload: FileUpload, sha256: str) -> str:
    return f"part_{hashlib.sha256(f'{upload.id} {sha256}'.encode()).hexdigest()[:32]}"


def _write(upload: FileUpload) -> str:
    plain = {name: getattr(upload, name).isoformat() for name in ("created_at", "expires_at")}
    return json.dumps(vars(upload) | plain | {"owner": upload.owner and str(upload.owner)})
