"""Uploads of base models: their files arrive in pieces, in any order, and are published together.

An upload is a folder beside the models, so that publishing is one rename. It holds the list of announced files, those
that are complete, and those that are arriving. Its name is made of what is announced: who announces the same again
goes on where the upload stopped. What nobody goes on with is removed after KEPT_SECONDS.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from jobs.base_models.announcing import AnnouncedFile, check_files
from jobs.base_models.catalog import describe_model
from jobs.base_models.pieces import PieceWriter, finding_upload, locked
from jobs.base_models.placing import check_free
from jobs.base_models.publishing import check_name, find_same, publish_upload
from jobs.base_models.records import Record
from jobs.errors import ModelExists, UploadConflict, UploadNotFound, UploadTooLarge
from jobs.settings import Settings
from jobs.shared_store import hash_file
from sft.errors import DiskFull, ModelUnusable
from sft.files.disk import is_about_space, measure_free
from sft.files.publication import discard_folder, publish_folder, sync_path

UPLOADS = ".uploads"  # in the model root
KEPT_SECONDS = 24 * 3600.0
MOST_OPEN = 64  # uploads at a time
_LIST, _FILES, _PARTS = "upload.json", "files", "parts"


class IncomingModel:
    """An upload in progress, or one whose model is published."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        content = _read_list(folder)
        self.folder = folder
        self.id = folder.name
        self.settings = settings
        self.name: str = content["name"]
        self.owner: str | None = content["owner"]
        self.files = {one["path"]: AnnouncedFile(**one) for one in content["files"]}

    @classmethod
    def begin(cls, name: str, files: Sequence[AnnouncedFile], owner: UUID | None, settings: Settings) -> Self:
        """Announce a model's files; returns the upload, which may have some of them already.

        Raises:
            InvalidUpload: the files are not those of a base model, or a name can't be used.
            ModelExists: another model has this name.
            UploadTooLarge, DiskFull: they are too large, or there are too many uploads.
        """
        check_name(name)
        check_files(files)
        total = sum(file.bytes for file in files)
        if total > settings.max_model_bytes:
            raise UploadTooLarge(
                f"the base model has {total} bytes; at most {settings.max_model_bytes} may be uploaded "
                "(TUNEYARD_MAX_MODEL_BYTES)"
            )
        listed = sorted((asdict(file) for file in files), key=lambda file: str(file["path"]))
        content = {"name": name, "owner": str(owner) if owner else None, "files": listed}
        text = json.dumps(content)
        folder = _root(settings) / hashlib.sha256(text.encode()).hexdigest()[:32]
        is_there = find_same(name, settings, {file.path: file.sha256 for file in files})
        if not is_there:
            try:
                check_free(name, settings)
            except ModelExists:  # also of an upload that began before
                discard_folder(folder)
                raise
        if not folder.is_dir():
            remove_expired(settings)
            if not is_there:
                _check_room(total, settings)
            with publish_folder(folder, replace=False) as fresh:
                (fresh / _LIST).write_text(text, encoding="utf-8")
                (fresh / _FILES).mkdir()
                (fresh / _PARTS).mkdir()
        os.utime(folder)
        return cls(folder, settings)

    @classmethod
    def find(cls, upload_id: str, owner: UUID | None, settings: Settings) -> Self:
        """Find an upload of this owner. Raises UploadNotFound."""
        folder = _root(settings) / upload_id
        if len(upload_id) == 32 and upload_id.isalnum() and upload_id.isascii() and folder.is_dir():
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = cls(folder, settings)
                if found.owner == (str(owner) if owner else None):
                    return found
        raise UploadNotFound(f"no upload {upload_id!r:.80} is in progress; announce the files again (POST /models)")

    @property
    def is_published(self) -> bool:
        """Whether the model is there with these files."""
        return find_same(self.name, self.settings, {path: file.sha256 for path, file in self.files.items()})

    def describe(self) -> dict[str, Any]:
        """The fields of `tuneyard_wire.base_models.ModelUpload`."""
        is_published = self.is_published
        states = [self.describe_file(path, is_published) for path in self.files]
        return {"upload_id": self.id, "name": self.name, "complete": is_published, "files": states}

    def describe_file(self, path: str, is_published: bool = False) -> dict[str, Any]:
        """The fields of `tuneyard_wire.base_models.UploadedFile`."""
        file = self._announced(path)
        is_complete = is_published or self._complete_place(path).is_file()
        received = file.bytes if is_complete else _size_of(self._part_place(path))
        return {"path": path, "bytes": file.bytes, "received_bytes": received, "complete": is_complete}

    @contextmanager
    def receiving(self, path: str, offset: int) -> Iterator["PieceWriter | None"]:
        """Yield what takes the bytes of a file from `offset` on; None if it is complete already.

        The last piece completes the file, if its SHA-256 is right.

        Raises:
            UploadNotFound: no such file was announced.
            UploadConflict: another piece of the file is arriving, the bytes before `offset` have not arrived, there are
                more bytes than announced, or the SHA-256 is another one: then the file must be sent again.
            DiskFull: it does not fit; what fits is kept.
        """
        file = self._announced(path)
        if self._complete_place(path).is_file():
            yield None
            return
        busy = f"another piece of {path} is arriving; send one at a time"
        with finding_upload(), locked(self._part_place(path), busy) as part:
            if self._complete_place(path).is_file():  # completed by the one that was waited for
                yield None
                return
            received = os.fstat(part.fileno()).st_size
            if offset > received:
                raise UploadConflict(f"offset of {path} must be at most {received}, which have arrived, got {offset}")
            part.truncate(offset)
            part.seek(offset)
            os.utime(self.folder)
            try:
                yield PieceWriter(part, file.bytes - offset, path)
            except OSError as error:
                if not is_about_space(error):
                    raise
                raise DiskFull(
                    f"no space left in {self.folder.parent} for {path}; free some, and go on with the upload"
                ) from error
            if os.fstat(part.fileno()).st_size == file.bytes:
                self._complete(file)

    def publish(self) -> dict[str, Any]:
        """Check the files and put the model in its place; returns its fields. Without effect if it is there.

        Raises:
            UploadConflict: files are missing.
            ModelUnusable: they are damaged, or not those of a base model; the upload is removed.
            ModelExists: meanwhile another model has this name; the upload is removed.
            StackError, StoreRefused: it can't be put into the store; try again.
        """
        with finding_upload(), locked(self.folder / _LIST, "the upload is being completed", wait=True):
            if not self.is_published:
                missing = [path for path in self.files if not self._complete_place(path).is_file()]
                if missing:
                    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                    raise UploadConflict(f"{missing[0]}{more} of {self.name} has not arrived completely; send the rest")
                digests = {path: file.sha256 for path, file in self.files.items()}
                sizes = {path: file.bytes for path, file in self.files.items()}
                record = Record(datetime.now(UTC).isoformat(), sizes, self.owner, digests)
                try:
                    publish_upload(self.folder / _FILES, self.name, self.settings, record)
                except (ModelExists, ModelUnusable):
                    self.remove()
                    raise
        self.remove()
        return describe_model(self.name, self.settings)

    def remove(self) -> None:
        """Remove the upload, with what has arrived."""
        discard_folder(self.folder)

    def _complete(self, file: AnnouncedFile) -> None:
        part = self._part_place(file.path)
        if (found := hash_file(part)) != file.sha256:
            part.unlink()
            raise UploadConflict(
                f"{file.path} has the SHA-256 {found}, and {file.sha256} was announced; send it again from the start"
            )
        sync_path(part)
        target = self._complete_place(file.path)
        target.parent.mkdir(exist_ok=True)
        part.rename(target)

    def _announced(self, path: str) -> AnnouncedFile:
        if path not in self.files:
            raise UploadNotFound(f"{path!r:.200} is not one of the {len(self.files)} files of this upload")
        return self.files[path]

    def _complete_place(self, path: str) -> Path:
        return self.folder / _FILES / path

    def _part_place(self, path: str) -> Path:
        return self.folder / _PARTS / path.replace("/", "+")  # no name of a file has a +


def remove_expired(settings: Settings) -> None:
    """Remove uploads that nobody has gone on with for KEPT_SECONDS."""
    limit = time.time() - KEPT_SECONDS
    for folder in _list_uploads(settings):
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < limit:
                discard_folder(folder)


def _check_room(total: int, settings: Settings) -> None:
    """Raise DiskFull or UploadTooLarge unless this upload fits beside the open ones."""
    folders = _list_uploads(settings)
    if len(folders) >= MOST_OPEN:
        raise UploadTooLarge(f"{len(folders)} uploads are in progress, the maximum; complete or remove one of them")
    announced = 0
    for folder in folders:
        with suppress(OSError, ValueError, KeyError, TypeError):
            announced += sum(file["bytes"] for file in _read_list(folder)["files"]) - _measure(folder)
    free = measure_free(settings.model_root)
    if total + announced > free:
        raise DiskFull(
            f"the base model has {total / 1e9:.1f} GB, and in {settings.model_root} {free / 1e9:.1f} GB are free, of "
            f"which {announced / 1e9:.1f} GB are for other uploads; free some"
        )


def _list_uploads(settings: Settings) -> list[Path]:
    root = _root(settings)
    return [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []


def _root(settings: Settings) -> Path:
    return settings.model_root / UPLOADS


def _read_list(folder: Path) -> Any:
    return json.loads((folder / _LIST).read_text(encoding="utf-8"))


def _measure(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
