"""`/datasets/uploads`: add a file in parts, each of which can be sent again after a lost connection."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field

from api.data_routes import closing_after_error, describe, staging
from api.dependencies import JobOwner, Service, VisibleOwner
from api.limits import client_name
from api.request_fields import RequestFields
from api.responses import respond
from api.waiting import run_for_client
from jobs.errors import InvalidUpload
from jobs.own_data.registry import Published
from jobs.own_data.staging import noticing_full_disk, staging_folder
from jobs.own_data.uploads import MAX_PARTS, Upload, Uploads
from jobs.service.data_adder import AddingCancelled, DataAdder, NewFile
from jobs.service.job_service import JobService
from jobs.service.own_data import refuse_taken
from sft.explanations import Matching
from tuneyard_wire import own_data as wire
from tuneyard_wire.service import Message

router = APIRouter(prefix="/datasets/uploads", tags=["Datasets"])

BUFFER_BYTES = 2**20
Digest = Annotated[str, Matching("^[0-9a-f]{64}$", "must be a SHA-256 in 64 hexadecimal digits")]
BINARY_BODY = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


class UploadRequest(RequestFields):
    """A file that will be sent in parts."""

    filename: str = Field(min_length=1, max_length=1000, description="Its suffix says what the file is.")
    bytes: int = Field(gt=0, le=2**62, description="Size of the whole file.")
    name: str | None = Field(None, description="Name of the dataset; that of the file without its suffix if unset.")
    sha256: Digest | None = Field(None, description="Of the whole file; checked when the upload is completed.")


def find_uploads(service: Service) -> Uploads:
    """The uploads of this service."""
    settings = service.settings
    return Uploads(settings.home, settings.keep_uploads_hours, settings.max_upload_bytes)


def find_upload(upload_id: str, uploads: Annotated[Uploads, Depends(find_uploads)], visible: VisibleOwner) -> Upload:
    """Find the upload of the path. Raises UploadNotFound."""
    return uploads.get(upload_id, visible)


FoundUploads = Annotated[Uploads, Depends(find_uploads)]
FoundUpload = Annotated[Upload, Depends(find_upload)]


@router.post("")
def begin_upload(
    body: UploadRequest, uploads: FoundUploads, service: Service, owner: JobOwner, visible: VisibleOwner
) -> wire.Upload:
    """Begin an upload: send its parts, in any order, and complete it."""
    refuse_taken(service.settings, body.filename, body.name, owner, visible is None)
    return _show(uploads.begin(body.filename, body.bytes, body.name, body.sha256, owner))


@router.get("/{upload_id}")
def get_upload(upload: FoundUpload) -> wire.Upload:
    """Get an upload with the parts that have arrived."""
    return _show(upload)


@router.put("/{upload_id}/parts/{number}", openapi_extra={"requestBody": BINARY_BODY})
async def put_part(
    request: Request,
    number: Annotated[int, Path(ge=1, le=MAX_PARTS, description="The parts are joined in this order.")],
    upload: FoundUpload,
    uploads: FoundUploads,
    service: Service,
    sha256: Annotated[Digest | None, Query(description="Of the part; one that arrived otherwise is refused.")] = None,
) -> wire.UploadedPart:
    """Send a part, as the body; one that is sent again replaces the one before."""
    with request.app.state.upload_limit.held(client_name(request.scope)):
        async with closing_after_error(request), staging(service, request) as folder:
            path, size, digest = await _receive(request, folder, number, upload.size)
            if sha256 not in (None, digest):
                raise InvalidUpload(f"part {number} has the SHA-256 {digest}, not {sha256}; send it again")
            if not size:
                raise InvalidUpload(f"part {number} is empty; leave it out")
            part = await to_thread.run_sync(uploads.put, upload, number, path, digest)
    return wire.UploadedPart(number=part.number, bytes=part.size, sha256=part.sha256)


@router.post("/{upload_id}/complete")
async def complete_upload(
    request: Request,
    upload: FoundUpload,
    uploads: FoundUploads,
    service: Service,
    visible: VisibleOwner,
) -> wire.AddedDataset:
    """Join the parts and add the file, as `POST /datasets` does. If it is refused, the upload stays."""
    state, client = request.app.state, client_name(request.scope)
    with state.upload_limit.held(client):
        work = partial(_complete, state.data_adder, service, uploads, upload, visible is None, client)
        published = await run_for_client(request, work, state.upload_threads, AddingCancelled)
    return respond(wire.AddedDataset, describe(published.version) | {"is_new": published.is_new})


@router.delete("/{upload_id}")
def delete_upload(upload: FoundUpload, uploads: FoundUploads) -> Message:
    """Delete an upload and its parts."""
    uploads.remove(upload)
    return Message(message=f"Upload {upload.id} deleted")


def _complete(
    adder: DataAdder,
    service: JobService,
    uploads: Uploads,
    upload: Upload,
    may_extend_all: bool,
    client: str,
    is_gone: Callable[[], bool],
) -> Published:
    def check() -> None:
        if is_gone():
            raise AddingCancelled

    with staging_folder(service.settings.home, upload.size) as folder:
        path = folder / "content"
        digest = uploads.join(upload, path, check)
        file = NewFile(path, upload.filename, upload.name, upload.owner, may_extend_all, digest)
        published = adder.add(file, service.settings, is_gone, client)
    uploads.remove(upload)
    return published


async def _receive(request: Request, folder: FilePath, number: int, most: int) -> tuple[FilePath, int, str]:
    """Write the body into the folder; returns the file, its size and its SHA-256.

    Raises InvalidUpload once it has more than `most` bytes, of which no more are written.
    """
    path, digest, buffer, received = folder / "part", hashlib.sha256(), bytearray(), 0

    def write(file: Any) -> None:
        digest.update(buffer)
        file.write(buffer)
        buffer.clear()

    with noticing_full_disk(folder), path.open("xb") as file:
        async for chunk in request.stream():
            buffer += chunk
            received += len(chunk)
            if received > most:
                raise InvalidUpload(f"part {number} is larger than the upload, which has {most} bytes; send the file's")
            if len(buffer) >= BUFFER_BYTES:
                await to_thread.run_sync(write, file)
        await to_thread.run_sync(write, file)
        size = file.tell()
    return path, size, digest.hexdigest()


def _show(upload: Upload) -> wire.Upload:
    parts = [{"number": part.number, "bytes": part.size, "sha256": part.sha256} for part in upload.parts]
    names = ("filename", "name", "expires_at")
    shown = {name: getattr(upload, name) for name in names}
    return respond(wire.Upload, shown | {"upload_id": upload.id, "bytes": upload.size, "parts": parts})
