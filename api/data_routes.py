"""`/datasets`: add files as versions of datasets, list, show, download and delete them."""

import base64
import binascii
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.dataset_files import DOWNLOAD, RangeOf, WantedRange, locate_file, send_file
from api.dependencies import JobOwner, Service, VisibleOwner
from api.errors import CLOSES
from api.job_query import announce_next_page
from api.limits import ClientLimit, client_name
from api.multipart import receive_form
from api.responses import respond
from api.waiting import run_for_client
from jobs.errors import InvalidCursor
from jobs.own_data.naming import check_name, find_suffix, read_filename
from jobs.own_data.staging import staging_folder
from jobs.own_data.version import DataVersion
from jobs.service import own_data
from jobs.service.data_adder import AddingCancelled, DataAdder, NewFile
from jobs.service.job_service import JobService
from jobs.service.planner import PlanCancelled, Planner
from jobs.vocabulary import PAGE_SIZE
from sft.config import Name, PathText
from sft.errors import InvalidConfig
from tuneyard_wire import own_data as wire

router = APIRouter(prefix="/datasets", tags=["Datasets"])

CLIENTS = 4  # that may each have the maximum of uploads at once
FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "A .jsonl, .json, .csv or .parquet file, or .jsonl.gz or .jsonl.zst.",
                    },
                    "name": {
                        "type": "string",
                        "description": "Name of the dataset; that of the file without its suffix if unset.",
                    },
                },
            }
        }
    },
}


@router.post("", openapi_extra={"requestBody": FORM})
async def add_dataset(request: Request, service: Service, owner: JobOwner, visible: VisibleOwner) -> wire.AddedDataset:
    """Add a file as a version of a dataset, which jobs name as `NAME@VERSION`.

    The file is checked: format, rows, bad rows with reasons, duplicates. The same content under the same name is the
    version that it was before.
    """
    with request.app.state.upload_limit.held(client_name(request.scope)):
        async with closing_after_error(request), staging(service, request) as folder:
            form = await receive_form(request, folder, ("name",), check=check_names)
            file = NewFile(form.path, form.filename, form.fields.get("name"), owner, visible is None, form.sha256)
            return await publish(request, service, file)


def check_names(filename: str, fields: Mapping[str, str]) -> None:
    """Raise InvalidConfig for a file that can't be added by its names, before it is read."""
    find_suffix(read_filename(filename))
    if "name" in fields:
        check_name(fields["name"])


@asynccontextmanager
async def staging(service: JobService, request: Request) -> AsyncIterator[Path]:
    """A folder for an upload; making and removing it does not hold up other requests. Raises DiskFull."""
    length = request.headers.get("content-length", "")
    held = staging_folder(service.settings.home, int(length) if length.isdecimal() else 0)
    folder = await to_thread.run_sync(held.__enter__)
    try:
        yield folder
    finally:
        await to_thread.run_sync(partial(held.__exit__, None, None, None))


@asynccontextmanager
async def closing_after_error(request: Request) -> AsyncIterator[None]:
    """Have the connection closed after an error response: the rest of a long body would be read otherwise."""
    try:
        yield
    except BaseException:
        setattr(request.state, CLOSES, True)
        raise


async def publish(request: Request, service: JobService, file: NewFile) -> wire.AddedDataset:
    """Check and publish a file for the client that waits."""
    state = request.app.state
    adder: DataAdder = state.data_adder
    work = partial(_add, adder, file, service, client_name(request.scope))
    published = await run_for_client(request, work, state.upload_threads, AddingCancelled)
    return respond(wire.AddedDataset, describe(published.version) | {"is_new": published.is_new})


def _add(adder: DataAdder, file: NewFile, service: JobService, client: str, is_gone: Any) -> Any:
    return adder.add(file, service.settings, is_gone, client)


@router.get("", response_model=list[wire.DatasetVersion])
def list_datasets(
    request: Request,
    response: Response,
    service: Service,
    visible: VisibleOwner,
    limit: Annotated[
        int | None,
        Query(
            ge=1, le=PAGE_SIZE, description="Datasets per page; all if unset. `X-Next-Cursor`, `Link` name the next."
        ),
    ] = None,
    cursor: Annotated[str | None, Query(description="Start of the page: `X-Next-Cursor` of the previous one.")] = None,
) -> list[wire.DatasetVersion]:
    """List the newest version of each dataset that was added, the one added last first."""
    found = own_data.list_datasets(service.settings, visible)
    if cursor is not None:
        after = _read_cursor(cursor)
        found = [version for version in found if _key(version) < after]
    if limit is not None and len(found) > limit:
        found = found[:limit]
        announce_next_page(request, response, _write_cursor(found[-1]))
    return [respond(wire.DatasetVersion, describe(version)) for version in found]


@router.get("/{dataset}")
def get_dataset(dataset: str, service: Service, visible: VisibleOwner) -> wire.Dataset:
    """Get a dataset that was added, `NAME` with all versions or `NAME@VERSION` with one."""
    found = own_data.find_versions(service.settings, dataset, visible)
    return respond(wire.Dataset, {"name": found[0].name, "versions": [describe(version) for version in found]})


@router.delete("/{dataset}")
def delete_dataset(dataset: str, service: Service, visible: VisibleOwner) -> wire.DeletedDataset:
    """Delete a version, `NAME@VERSION`, or all versions, `NAME`, unless a job that has not ended needs one."""
    deleted = own_data.delete_versions(service, dataset, visible)
    return wire.DeletedDataset(deleted=[str(version.reference) for version in deleted])


@router.get("/{dataset}/rows")
async def show_rows(
    dataset: str,
    request: Request,
    service: Service,
    visible: VisibleOwner,
    limit: Annotated[int, Query(ge=1, le=50, description="Number of rows.")] = 3,
    model: Annotated[
        PathText | None, Query(description="Base model whose tokenizer and template render the rows.")
    ] = None,
    template: Annotated[
        Name | None, Query(description="Chat template, only with `model`; the model's own if unset.")
    ] = None,
) -> wire.ShownRows:
    """Show the first rows, and with `model` each as the chat template writes it, its supervised parts marked."""
    if template is not None and model is None:
        raise InvalidConfig(f"template {template!r:.80} needs model: the base model whose tokenizer renders the rows")
    version = await to_thread.run_sync(own_data.find_version, service.settings, dataset, visible)
    path = locate_file(service, version)
    wanted = {
        "path": str(path),
        "label": str(version.reference),
        "limit": limit,
        "format": version.format,
        "model": model,
        "template": template,
    }
    planner: Planner = request.app.state.planner
    client = client_name(request.scope)
    with request.app.state.plan_limit.held(client):
        work = partial(_show_rows, planner, wanted, service, client, path, version.suffix)
        rows = await run_for_client(request, work, request.app.state.upload_threads, PlanCancelled)
    return respond(wire.ShownRows, {"reference": str(version.reference), "rows": rows})


def _show_rows(
    planner: Planner, wanted: dict[str, Any], service: JobService, client: str, path: Path, suffix: str, is_gone: Any
) -> list[dict[str, Any]]:
    with staging_folder(service.settings.home) as folder:  # a name by which the reader knows what the file is
        link = folder / f"rows{suffix}"
        link.symlink_to(path)
        return planner.show_rows(wanted | {"path": str(link)}, service.settings, is_gone, client)


@router.get(
    "/{dataset}/content",
    response_class=StreamingResponse,
    responses=DOWNLOAD,
)
def download_dataset(
    request: Request,
    dataset: str,
    service: Service,
    visible: VisibleOwner,
    wanted: WantedRange = None,
    only_of: RangeOf = None,
) -> Response:
    """Download a version's file, of `NAME` alone the newest."""
    version = own_data.find_version(service.settings, dataset, visible)
    return send_file(request, version, locate_file(service, version), wanted, only_of)


def describe(version: DataVersion) -> dict[str, Any]:
    """Build the fields of a DatasetVersion."""
    plain = {name: getattr(version, name) for name in wire.DatasetVersion.model_fields if hasattr(version, name)}
    return plain | {
        "reference": str(version.reference),
        "bytes": version.size,
        "columns": [*version.columns],
        "bad_rows": [{"row": row, "reason": reason} for row, reason in version.bad_rows],
        "reasons": [*version.reasons],
        "owner": version.owner and str(version.owner),
    }


def install(state: Any, max_uploads: int) -> None:
    """Set what the routes share: limits, threads, and the one that adds files."""
    too_many = (
        f"At most {max_uploads} files may be uploaded at once per API key, or per address without keys "
        "(TUNEYARD_MAX_UPLOADS); wait for one of yours"
    )
    total = CLIENTS * max_uploads
    state.data_adder = DataAdder()
    state.upload_limit = ClientLimit(max_uploads, total, too_many, f"The service has {total} uploads, its maximum")
    state.upload_threads = CapacityLimiter(total)


def _key(version: DataVersion) -> tuple[str, str]:
    return version.created_at.isoformat(timespec="microseconds"), version.name


def _write_cursor(version: DataVersion) -> str:
    return base64.urlsafe_b64encode(json.dumps(_key(version)).encode()).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[str, str]:
    try:
        time, name = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if isinstance(time, str) and isinstance(name, str):
            return time, name
    except (ValueError, TypeError, RecursionError, binascii.Error):
        pass
    raise InvalidCursor("cursor is not one of this service; leave it out to start at the first page")
