"""`/v1/files`: the versions of added datasets as OpenAI's files."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.data_routes import closing_after_error, staging
from api.dataset_files import DOWNLOAD, RangeOf, WantedRange, locate_file, send_file
from api.dependencies import JobOwner, Service, VisibleOwner
from api.limits import client_name
from api.multipart import receive_form
from api.openai.file_request import FILE_FORM, check_purpose
from api.responses import respond
from api.waiting import run_for_client
from jobs.errors import InvalidCursor
from jobs.service.data_adder import AddingCancelled, DataAdder, NewFile
from jobs.service.files import StoredFile, add_file, delete_file, find_file, list_files
from jobs.service.job_service import JobService
from sft.errors import InvalidDataset
from tuneyard_wire.openai_files import FINE_TUNE, OpenAIFile, OpenAIFileDeleted, OpenAIFiles

router = APIRouter(prefix="/v1/files", tags=["OpenAI API"])

MOST_LISTED = 10_000
FileId = Annotated[str, Path(description="`file-…`")]


@router.post("", openapi_extra={"requestBody": FILE_FORM})
async def create_file(request: Request, service: Service, owner: JobOwner) -> OpenAIFile:
    """Add a file of rows as a version of the dataset of its name. It is checked before the response.

    The same content under the same name is the file that it was.
    """
    state, client = request.app.state, client_name(request.scope)
    with state.upload_limit.held(client):
        async with closing_after_error(request), staging(service, request) as folder:
            form = await receive_form(request, folder, ("purpose",))
            check_purpose(form.fields.get("purpose"))
            file = NewFile(form.path, form.filename, owner=owner, sha256=form.sha256)
            work = partial(_add, state.data_adder, file, service, client)
            return show(await run_for_client(request, work, state.upload_threads, AddingCancelled))


def _add(adder: DataAdder, file: NewFile, service: JobService, client: str, is_gone: Any) -> StoredFile:
    return add_file(adder, file, service.settings, is_gone, client)


@router.get("")
def list_all_files(
    service: Service,
    visible: VisibleOwner,
    after: Annotated[str | None, Query(description="Id of the last file of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="Files per page.")] = MOST_LISTED,
    order: Annotated[Literal["asc", "desc"], Query(description="By the time at which they were added.")] = "desc",
    purpose: Annotated[str | None, Query(max_length=100, description="All files have `fine-tune`.")] = None,
) -> OpenAIFiles:
    """List files: every version of every dataset that was added, and files whose rows can't be read."""
    found = list_files(service.settings, visible) if purpose in (None, FINE_TUNE) else []
    if order == "asc":
        found.reverse()
    if after is not None:
        places = [place for place, file in enumerate(found) if file.id == after]
        if not places:
            raise InvalidCursor(f"after {after!r:.80} is not in this list; leave it out to start at the first page")
        found = found[places[0] + 1 :]
    page = [show(file) for file in found[:limit]]
    ends = {"first_id": page[0].id, "last_id": page[-1].id} if page else {"first_id": None, "last_id": None}
    return respond(OpenAIFiles, {"data": page, "has_more": len(found) > limit, **ends})


@router.get("/{file_id}")
def get_file(file_id: FileId, service: Service, visible: VisibleOwner) -> OpenAIFile:
    """Get a file."""
    return show(find_file(service.settings, file_id, visible))


@router.delete("/{file_id}")
def remove_file(file_id: FileId, service: Service, visible: VisibleOwner) -> OpenAIFileDeleted:
    """Delete a file, and the version of the dataset that it is, unless a job that has not ended needs it."""
    delete_file(service, file_id, visible)
    return OpenAIFileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=DOWNLOAD)
def download_file(
    file_id: FileId,
    request: Request,
    service: Service,
    visible: VisibleOwner,
    wanted: WantedRange = None,
    only_of: RangeOf = None,
) -> Response:
    """Download a file."""
    file = find_file(service.settings, file_id, visible)
    if file.version is None:
        raise InvalidDataset(f"the content of file {file_id} was not kept, as it can't be used: {file.problem}")
    return send_file(request, file.version, locate_file(service, file.version), wanted, only_of)


def show(file: StoredFile) -> OpenAIFile:
    """Build the response for a file."""
    return respond(
        OpenAIFile,
        {
            "id": file.id,
            "bytes": file.size,
            "created_at": int(file.created_at.timestamp()),
            "filename": file.filename,
            "status": "processed" if file.has_rows else "error",
            "status_details": file.problem,
            "dataset": file.version and str(file.version.reference),
        },
    )
