"""Requests about base models, and the steps of an upload."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tuneyard_client.calls import Call, Steps
from tuneyard_client.errors import InvalidRequest, UnexpectedResponse
from tuneyard_client.reading import read_model
from tuneyard_wire.base_models import PIECE_BYTES, Model, Models, ModelUpload, UploadedFile
from tuneyard_wire.model_folder import ADAPTER, complete_name, find_foreign, is_model_folder, select_files

Progress = Callable[[int, int], None]  # bytes sent, of all bytes


class ReadFile(NamedTuple):
    """A file of a model, as it is announced."""

    path: str
    bytes: int
    sha256: str


class ReadFolder(NamedTuple):
    """The files of a base model that will be uploaded, and the entries of its folder that will not."""

    folder: Path
    files: list[ReadFile]
    left_out: tuple[str, ...]


def read_folder(folder: Path) -> ReadFolder:
    """Choose and hash the files of a base model.

    Raises:
        InvalidRequest: the folder has no base model, or a file can't be read or is a link to elsewhere.
    """
    if not is_model_folder(folder):
        what = f"has an adapter ({ADAPTER}), not a base model" if (folder / ADAPTER).is_file() else "has no config.json"
        raise InvalidRequest(f"{str(folder)!r:.200} {what}; name the folder of a base model", code="invalid_request")
    try:
        chosen = select_files(folder)
        if foreign := find_foreign(folder, chosen.files):
            raise InvalidRequest(f"{str(folder)!r:.200}: {foreign}", code="invalid_request")
        files = [ReadFile(path, (folder / path).stat().st_size, _hash(folder / path)) for path in chosen.files]
    except OSError as error:
        raise InvalidRequest(f"{error.filename}: {error.strerror or error}", code="invalid_request") from error
    return ReadFolder(folder, files, chosen.left_out)


def models() -> Call[Models]:
    """GET /models."""
    return Call("GET", "/models", read_model(Models), is_repeatable=True)


def model(name: str) -> Call[Model]:
    """GET /models/{org}/{name}."""
    return Call("GET", _model_path(name), read_model(Model), is_repeatable=True)


def delete_model(name: str) -> Call[None]:
    """DELETE /models/{org}/{name}."""
    return Call("DELETE", _model_path(name), lambda _response: None)


def upload(read: ReadFolder, name: str, progress: Progress | None = None) -> Steps[Model]:
    """Upload a base model, or go on with its upload; returns the model. Raises InvalidRequest for a changed file."""
    body = {"name": complete_name(name), "files": [file._asdict() for file in read.files]}
    begun: ModelUpload = yield Call("POST", "/models", read_model(ModelUpload), body=body, is_repeatable=True)
    states = {file.path: file for file in begun.files}
    total, sent = sum(file.bytes for file in read.files), sum(file.received_bytes for file in begun.files)
    path = f"/model-uploads/{quote(begun.upload_id, safe='')}"
    for file in read.files:
        state = states.get(file.path)
        offset = state.received_bytes if state else 0
        is_complete = state is not None and state.complete
        while not is_complete:
            answer: UploadedFile = yield _piece(path, file, read.folder, offset)
            if not answer.complete and answer.received_bytes <= offset:
                raise UnexpectedResponse(f"{file.path} does not arrive; is this a Tuneyard service?")
            sent += answer.received_bytes - offset
            offset, is_complete = answer.received_bytes, answer.complete
            if progress:
                progress(sent, total)
    published: Model = yield Call("POST", f"{path}/complete", read_model(Model), is_repeatable=True, is_endless=True)
    return published


def _piece(path: str, file: ReadFile, folder: Path, offset: int) -> Call[UploadedFile]:
    """PUT /model-uploads/{id}: the next piece of a file. The service hashes the file after its last one."""
    try:
        with (folder / file.path).open("rb") as opened:
            opened.seek(offset)
            content = opened.read(PIECE_BYTES)
    except OSError as error:
        raise InvalidRequest(f"{error.filename}: {error.strerror or error}", code="invalid_request") from error
    if not content and file.bytes:
        raise InvalidRequest(f"{folder / file.path} became shorter while it was sent", code="invalid_request")
    return Call(
        "PUT",
        path,
        read_model(UploadedFile),
        params={"path": file.path, "offset": offset},
        headers={"Content-Type": "application/octet-stream"},
        is_repeatable=True,
        is_endless=True,
        content=content,
    )


def _model_path(name: str) -> str:
    parts = name.split("/")
    if len(parts) > 2 or any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(f"{name!r:.200} is not the name of a base model (ORG/NAME)", code="invalid_id")
    try:
        return "/models/" + "/".join(quote(part, safe="") for part in parts)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name!r:.80} is not the name of a base model", code="invalid_id") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
