"""Calls and downloads of datasets that users add."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuneyard_client.calls import CURSOR_HEADER, MAX_EMPTY_PAGES, PAGE_SIZE, Call, Steps, segment
from tuneyard_client.errors import ChecksumMismatch, ClientError, UnexpectedResponse
from tuneyard_client.reading import read_model, read_models
from tuneyard_client.responses import check_disk_space
from tuneyard_client.streams import CHECKSUM_HEADER
from tuneyard_wire.own_data import (
    AddedDataset,
    Dataset,
    DatasetVersion,
    DeletedDataset,
    ShownRows,
    Upload,
    UploadedPart,
)

WHOLE_BYTES = 64 * 2**20  # of a file that is sent at once
PART_BYTES = 8 * 2**20


def add(path: Path, name: str | None = None) -> Call[AddedDataset]:
    """POST /datasets. Sending a file again has no effect, as the same content is the same version.

    Raises ClientError if the file can't be read.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ClientError(f"{path} can't be read: {error.strerror}", code="file_unreadable") from error
    body = None if name is None else {"name": name}
    read = read_model(AddedDataset)
    return Call("POST", "/datasets", read, body=body, upload=path, is_repeatable=True, is_endless=True)


def add_all(path: Path, name: str | None = None) -> Steps[AddedDataset]:
    """Add a file: at once, or a large one in parts, of which each is sent again after a lost connection.

    Raises ClientError if the file can't be read, or changes meanwhile.
    """
    whole = add(path, name)
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        added: AddedDataset = yield whole
        return added
    upload: Upload = yield begin(path.name, size, name)
    number = 0
    with path.open("rb") as file:
        while content := file.read(PART_BYTES):
            number += 1
            yield put_part(upload.upload_id, number, content)
    completed: AddedDataset = yield complete(upload.upload_id)
    return completed


def begin(filename: str, size: int, name: str | None) -> Call[Upload]:
    """POST /datasets/uploads. One that is begun and not gone on with is removed by the service."""
    body = {"filename": filename, "bytes": size} | ({} if name is None else {"name": name})
    return Call("POST", "/datasets/uploads", read_model(Upload), body=body, is_repeatable=True)


def put_part(upload_id: str, number: int, content: bytes) -> Call[UploadedPart]:
    """PUT /datasets/uploads/{id}/parts/{number}."""
    path = f"/datasets/uploads/{segment(upload_id)}/parts/{number}"
    params = {"sha256": hashlib.sha256(content).hexdigest()}
    headers = {"Content-Type": "application/octet-stream"}
    read = read_model(UploadedPart)
    return Call("PUT", path, read, params=params, headers=headers, content=content, is_repeatable=True)


def complete(upload_id: str) -> Call[AddedDataset]:
    """POST /datasets/uploads/{id}/complete."""
    path = f"/datasets/uploads/{segment(upload_id)}/complete"
    return Call("POST", path, read_model(AddedDataset), is_endless=True)


def get(dataset: str) -> Call[Dataset]:
    """GET /datasets/{dataset}."""
    return Call("GET", _path(dataset), read_model(Dataset), is_repeatable=True)


def delete(dataset: str) -> Call[DeletedDataset]:
    """DELETE /datasets/{dataset}."""
    return Call("DELETE", _path(dataset), read_model(DeletedDataset))


def rows(dataset: str, limit: int, model: str | None, template: str | None) -> Call[ShownRows]:
    """GET /datasets/{dataset}/rows. The service limits its time itself; that is longer than the read timeout."""
    given = {"limit": limit, "model": model, "template": template}
    params = {name: value for name, value in given.items() if value is not None}
    read = read_model(ShownRows)
    return Call("GET", _path(dataset, "/rows"), read, params=params, is_repeatable=True, is_endless=True)


def content(dataset: str) -> Call[Any]:
    """GET /datasets/{dataset}/content."""
    return Call("GET", _path(dataset, "/content"), lambda response: response, is_repeatable=True)


def page(cursor: str | None) -> Call[tuple[list[DatasetVersion], str | None]]:
    """GET /datasets: one page, and the cursor of the next or None."""
    read = read_models(DatasetVersion)
    params = {"limit": PAGE_SIZE} | ({"cursor": cursor} if cursor else {})
    return Call(
        "GET",
        "/datasets",
        lambda response: (read(response), response.headers.get(CURSOR_HEADER)),
        params=params,
        is_repeatable=True,
    )


def list_all() -> Steps[list[DatasetVersion]]:
    """All datasets, page by page. Raises UnexpectedResponse if the pages never end."""
    found: list[DatasetVersion] = []
    cursor: str | None = None
    seen: set[str] = set()
    while True:
        versions, cursor = yield page(cursor)
        found += versions
        if cursor is None:
            return found
        if cursor in seen or (not versions and len(seen) >= MAX_EMPTY_PAGES):
            raise UnexpectedResponse("the list has no end; is this a Tuneyard service?")
        seen.add(cursor)


def _path(dataset: str, suffix: str = "") -> str:
    return f"/datasets/{segment(dataset, 'the name of a dataset (NAME or NAME@VERSION)')}{suffix}"


class FileDownload:
    """Write a download beside its place, and rename it once its checksum is right."""

    def __init__(self, path: Path, headers: Mapping[str, str]) -> None:
        check_disk_space(headers.get("Content-Length"))
        self._path = path
        self._expected = headers.get(CHECKSUM_HEADER)
        self._digest = hashlib.sha256()
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}-", dir=path.parent)
        except OSError as error:
            raise ClientError(f"{path} can't be written: {error.strerror}", code="folder_unwritable") from error
        self._temporary = Path(name)
        self._file = os.fdopen(handle, "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            self._temporary.unlink()

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises ClientError if the disk is full."""
        self._digest.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise ClientError(f"the file can't be saved: {error.strerror}", code="disk_full") from error

    def finish(self) -> Path:
        """Put the file in its place; returns that. Raises ChecksumMismatch if the download is damaged."""
        if self._digest.hexdigest() != self._expected:
            raise ChecksumMismatch(
                f"the file's SHA-256 is {self._digest.hexdigest()}, not {self._expected}; download it again"
            )
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            os.link(self._temporary, self._path)  # fails if there is a file by now
        except OSError as error:
            raise ClientError(f"{self._path} can't be written: {error.strerror}", code="file_exists") from error
        return self._path


def check_absent(path: Path) -> None:
    """Raise ClientError if a file can't be written there, or is there."""
    if path.exists() or path.is_symlink() or not path.name:
        raise ClientError(f"{path} exists; choose another name", code="file_exists")
    if not path.parent.is_dir():
        raise ClientError(f"{path.parent} is not a folder; choose another place", code="folder_unwritable")
