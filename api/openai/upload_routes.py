"""`/v1/uploads`: add a file in parts, whose order is told when it is completed."""

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request

from api.data_routes import closing_after_error, staging
from api.dependencies import JobOwner, Service, VisibleOwner
from api.limits import client_name
from api.multipart import receive_form
from api.openai.file_request import PART_FORM, FileUploadRequest, UploadCompletion
from api.openai.file_routes import show as show_file
from api.responses import respond
from api.waiting import run_for_client
from jobs.errors import InvalidUpload
from jobs.own_data.file_uploads import CANCELLED, COMPLETED, PART_BYTES, FileUpload, FileUploads, check_pending
from jobs.own_data.staging import staging_folder
from jobs.service.data_adder import AddingCancelled, DataAdder, NewFile
from jobs.service.files import add_file, find_file
from jobs.service.job_service import JobService
from jobs.settings import Settings
from sft.errors import DatasetNotFound
from tuneyard_wire.openai_files import OpenAIUpload, OpenAIUploadPart

router = APIRouter(prefix="/v1/uploads", tags=["OpenAI API"])

PART = "data"


def find_uploads(service: Service) -> FileUploads:
    """The uploads of this service."""
    settings = service.settings
    return FileUploads(settings.home, settings.keep_uploads_hours, settings.max_upload_bytes)


FoundUploads = Annotated[FileUploads, Depends(find_uploads)]


def find_upload(
    upload_id: Annotated[str, Path(description="`upload_…`")], uploads: FoundUploads, visible: VisibleOwner
) -> FileUpload:
    """Find the upload of the path. Raises UploadNotFound."""
    return uploads.get(upload_id, visible)


FoundUpload = Annotated[FileUpload, Depends(find_upload)]


@router.post("")
def begin_upload(body: FileUploadRequest, uploads: FoundUploads, service: Service, owner: JobOwner) -> OpenAIUpload:
    """Begin an upload: add its parts, then complete it before it expires."""
    return show(uploads.begin(body.filename, body.bytes, owner), service.settings)


@router.post("/{upload_id}/parts", openapi_extra={"requestBody": PART_FORM})
async def add_part(request: Request, upload: FoundUpload, uploads: FoundUploads, service: Service) -> OpenAIUploadPart:
    """Add a part, at the same time as others or after them. The same content has the same id."""
    with request.app.state.upload_limit.held(client_name(request.scope)):
        async with closing_after_error(request), staging(service, request) as folder:
            check_pending(upload)
            form = await receive_form(request, folder, field=PART, max_bytes=PART_BYTES)
            if not form.size:
                raise InvalidUpload("data is empty; leave the part out")
            part_id = await to_thread.run_sync(uploads.put, upload, form.path, form.sha256)
    return respond(OpenAIUploadPart, {"id": part_id, "created_at": int(time.time()), "upload_id": upload.id})


@router.post("/{upload_id}/complete")
async def complete_upload(
    body: UploadCompletion, request: Request, upload: FoundUpload, uploads: FoundUploads, service: Service
) -> OpenAIUpload:
    """Join the parts in this order and add the file, as `POST /v1/files` does. If it is refused, the upload stays.

    Completing it again with the same parts has the same response.
    """
    state, client = request.app.state, client_name(request.scope)
    with state.upload_limit.held(client):
        work = partial(_complete, state.data_adder, service, uploads, upload, body, client)
        done = await run_for_client(request, work, state.upload_threads, AddingCancelled)
    return await to_thread.run_sync(show, done, service.settings)


@router.post("/{upload_id}/cancel")
def cancel_upload(upload: FoundUpload, uploads: FoundUploads, service: Service) -> OpenAIUpload:
    """Cancel an upload and remove its parts. Cancelling it again has the same response."""

    def refuse() -> None:
        raise InvalidUpload(f"upload {upload.id} is being completed and can't be cancelled")

    with uploads.taken(upload, refuse) as now:
        if now.status != CANCELLED:
            check_pending(now)
            now = uploads.end(now, CANCELLED)
    return show(now, service.settings)


def _complete(
    adder: DataAdder,
    service: JobService,
    uploads: FileUploads,
    upload: FileUpload,
    body: UploadCompletion,
    client: str,
    is_gone: Callable[[], bool],
) -> FileUpload:
    def check() -> None:
        if is_gone():
            raise AddingCancelled

    with uploads.taken(upload, check) as now:
        if now.status == COMPLETED and now.part_ids == tuple(body.part_ids):
            return now
        check_pending(now)
        with staging_folder(service.settings.home, now.size) as folder:
            path = folder / "content"
            digest = uploads.join(now, body.part_ids, body.md5, path, check)
            file = NewFile(path, now.filename, owner=now.owner, sha256=digest)
            added = add_file(adder, file, service.settings, is_gone, client)
        return uploads.end(now, COMPLETED, added.id, body.part_ids)


def show(upload: FileUpload, settings: Settings) -> OpenAIUpload:
    """Build the response for an upload."""
    file = None
    if upload.file_id is not None:
        try:
            file = show_file(find_file(settings, upload.file_id))
        except DatasetNotFound:  # it was deleted since
            file = None
    times = {name: int(getattr(upload, name).timestamp()) for name in ("created_at", "expires_at")}
    shown = {name: getattr(upload, name) for name in ("id", "filename", "status")}
    return respond(OpenAIUpload, {**shown, **times, "bytes": upload.size, "file": file})
