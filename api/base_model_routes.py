"""Base models: list, show, remove, and upload in pieces."""

import os
from functools import partial
from typing import Annotated
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request

from api.base_model_request import NewModel
from api.dependencies import JobOwner, Service, VisibleOwner, find_client
from api.responses import respond
from jobs.base_models.catalog import describe_model, identify_root, list_names
from jobs.base_models.pieces import PieceWriter
from jobs.base_models.publishing import remove_model
from jobs.base_models.uploads import IncomingModel
from jobs.clients.keys import Client, KeyScope
from jobs.engine.listing import JobFilters
from jobs.service.job_service import JobService
from jobs.settings import Settings
from jobs.status import JobStatus
from sft.errors import ModelNotFound
from tuneyard_wire.base_models import Model, Models, ModelUpload, UploadedFile
from tuneyard_wire.service import Message

router = APIRouter(tags=["Base models"])

WRITTEN_BYTES = 2**20  # at once, as each write takes a thread
BODY = {
    "requestBody": {
        "required": False,
        "description": "The bytes of the piece; none for a file that is empty.",
        "content": {"application/octet-stream": {"schema": {"type": "string"}}},
    }
}
ONGOING = frozenset(status for status in JobStatus if not status.is_terminal)

FilePath = Annotated[str, Query(max_length=300, description="One of the announced files.")]
Offset = Annotated[
    int, Query(ge=0, le=2**50, description="Where in the file the piece begins: at most `received_bytes`.")
]


def get_settings(request: Request) -> Settings:
    """The settings of the app, without waiting for the stack."""
    settings: Settings = request.app.state.settings
    return settings


AppSettings = Annotated[Settings, Depends(get_settings)]


@router.get("/models")
def list_models(settings: AppSettings) -> Models:
    """List the base models in the model root, by name. Models of the Hub and its cache can be used as well."""
    found = []
    for name in list_names(settings):
        try:
            found.append(respond(Model, describe_model(name, settings)))
        except (ModelNotFound, OSError):  # removed meanwhile
            continue
    return Models(models=found, root_id=identify_root(settings, make=True))


@router.get("/models/{name}")
def get_plain_model(name: str, settings: AppSettings) -> Model:
    """Get a base model whose name has no organisation."""
    return respond(Model, describe_model(name, settings))


@router.get("/models/{org}/{name}")
def get_model(org: str, name: str, settings: AppSettings) -> Model:
    """Get a base model: its architecture, size, chat template, and why no job can train it, if that is known."""
    return respond(Model, describe_model(f"{org}/{name}", settings))


@router.delete("/models/{name}")
def delete_plain_model(
    name: str, request: Request, settings: AppSettings, service: Service, visible: VisibleOwner
) -> Message:
    """Remove a base model whose name has no organisation."""
    return _remove(name, request, settings, service, visible)


@router.delete("/models/{org}/{name}")
def delete_model(
    org: str, name: str, request: Request, settings: AppSettings, service: Service, visible: VisibleOwner
) -> Message:
    """Remove a base model; 409 while a job that has not ended needs it. Of a linked one only the link is removed."""
    return _remove(f"{org}/{name}", request, settings, service, visible)


@router.post("/models")
def begin_upload(body: NewModel, settings: AppSettings, owner: JobOwner) -> ModelUpload:
    """Announce the files of a base model. Announcing the same files again continues their upload."""
    return respond(ModelUpload, IncomingModel.begin(body.name, body.announced(), owner, settings).describe())


@router.get("/model-uploads/{upload_id}")
def get_upload(upload_id: str, settings: AppSettings, owner: JobOwner) -> ModelUpload:
    """Get what has arrived of an upload. One that nobody continues for a day is removed."""
    return respond(ModelUpload, IncomingModel.find(upload_id, owner, settings).describe())


@router.put("/model-uploads/{upload_id}", openapi_extra=BODY)
async def put_piece(
    upload_id: str, path: FilePath, request: Request, settings: AppSettings, owner: JobOwner, offset: Offset = 0
) -> UploadedFile:
    """Send a piece of a file. The last piece completes the file if its SHA-256 is right.

    A piece may be sent again; what came after it is dropped.
    """
    upload = await to_thread.run_sync(IncomingModel.find, upload_id, owner, settings)
    arrival = upload.receiving(path, offset)
    piece = await to_thread.run_sync(arrival.__enter__)
    try:
        await _write_body(request, piece)
    except BaseException as error:
        if not await to_thread.run_sync(arrival.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await to_thread.run_sync(arrival.__exit__, None, None, None)
    return respond(UploadedFile, await to_thread.run_sync(upload.describe_file, path))


@router.post("/model-uploads/{upload_id}/complete")
def complete_upload(upload_id: str, settings: AppSettings, owner: JobOwner) -> Model:
    """Check the files and publish the model; may be repeated until it has succeeded.

    Takes a while where a store has to receive it too.
    """
    return respond(Model, IncomingModel.find(upload_id, owner, settings).publish())


@router.delete("/model-uploads/{upload_id}")
def abort_upload(upload_id: str, settings: AppSettings, owner: JobOwner) -> Message:
    """Remove an upload with what has arrived."""
    IncomingModel.find(upload_id, owner, settings).remove()
    return Message(message=f"Upload {upload_id} removed")


async def _write_body(request: Request, piece: PieceWriter | None) -> None:
    """Write the body as it arrives; drop it if the file is complete already."""
    waiting = bytearray()
    async for chunk in request.stream():
        if piece is None:
            continue
        waiting += chunk
        if len(waiting) >= WRITTEN_BYTES:
            await to_thread.run_sync(piece.write, bytes(waiting))
            waiting.clear()
    if piece is not None and waiting:
        await to_thread.run_sync(piece.write, bytes(waiting))


def _remove(full_name: str, request: Request, settings: Settings, service: JobService, visible: UUID | None) -> Message:
    client = find_client(request)
    remover = client.owner_id if client else None
    find_jobs = partial(_find_jobs, service, full_name, visible)
    remove_model(full_name, settings, find_jobs, remover, may_remove_all=client is None or _is_admin(client))
    return Message(message=f"Base model {full_name} removed")


def _find_jobs(service: JobService, name: str, visible: UUID | None) -> list[str]:
    """The ids of jobs that have not ended and need this base model; jobs of others are not named."""
    page = service.list_jobs(JobFilters(statuses=ONGOING))
    needing = [
        job
        for job in page.jobs
        if not job.status.is_terminal and job.spec and os.path.normpath(job.spec.config.base_model) == name
    ]
    return [str(job.id) if visible in (None, job.owner) else "of another API key" for job in needing]


def _is_admin(client: Client) -> bool:
    return client.scope is KeyScope.ADMIN
