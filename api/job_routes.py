"""Events, log, metrics, checkpoints, adapter and deliveries of a job; the same in both APIs."""

import base64
import itertools
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.dependencies import Service, VisibleOwner
from api.errors import SFT_PREFIX
from api.ranges import read_range
from api.responses import respond
from api.stream_limit import LimitedStream
from api.streaming import STREAM_HEADERS, send_events, send_log
from jobs.results.archive import Download
from jobs.results.checkpoint_models import name_checkpoint
from jobs.results.feed import END_ID
from jobs.results.logs import LogLine, read_log
from jobs.results.records import list_checkpoints, read_series, series_to_csv
from jobs.results.result_files import Part, prepare_download
from jobs.service.job import Job
from jobs.status import SFT_STATUS_NAMES, TRAIN_STATUS_NAMES
from jobs.storage.connections import translate_errors
from jobs.storage.tables import WebhookDelivery
from jobs.webhooks.outbox import list_deliveries, message_id, resend
from sft.explanations import Matching
from tuneyard_wire.deliveries import Deliveries, Delivery
from tuneyard_wire.records import Checkpoint, Checkpoints, JobEvent, Metrics

MAX_TAIL = 100_000
NDJSON = "application/x-ndjson"
TAR = "application/x-tar"


def find_job(job_id: str, service: Service, owner: VisibleOwner) -> Job:
    """Find the job of the path. Raises JobNotFound, before anything is streamed."""
    return service.get(job_id, owner)


FoundJob = Annotated[Job, Depends(find_job)]
EventId = Annotated[str, Matching("^([0-9]{1,18}|end)?$", "must be the id of an event of this job, or end")]
LastEventId = Annotated[EventId | None, Header(description="The id of the last event received.")]
Tail = Annotated[int | None, Query(ge=0, le=MAX_TAIL, description="Number of lines from the end; all if unset.")]
WantedPart = Annotated[Part, Query(description="What to download of the job's result.")]

resources = APIRouter()


@resources.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/event-stream": {"itemSchema": JobEvent.model_json_schema()}},
            "description": "A stream of events.",
        },
        204: {"description": "`Last-Event-ID` was `end`: there are no more events."},
    },
)
async def stream_events(
    request: Request, job: FoundJob, service: Service, last_event_id: LastEventId = None
) -> Response:
    """Follow a job as server-sent events: `phase, begin, step, epoch, evaluate, checkpoint, stored, restart, lacking,
    merge` and, last, `end`.

    Sends all events, or those after `Last-Event-ID`, then new ones until the job has ended: `step` at most once a
    second, and a comment after every 15 seconds without an event.
    """
    if last_event_id == END_ID:
        return Response(status_code=204)  # with 204 a browser's EventSource does not reconnect
    names = SFT_STATUS_NAMES if request.url.path.startswith(SFT_PREFIX) else TRAIN_STATUS_NAMES
    events = send_events(request.app.state.streams, service, job, int(last_event_id or 0), names)
    return _stream(request, events, "text/event-stream")


@resources.get(
    "/{job_id}/logs",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}, NDJSON: {"schema": {"type": "string"}}},
            "description": "One line per record; line breaks in a record are escaped.",
        }
    },
)
async def get_logs(
    request: Request,
    job: FoundJob,
    service: Service,
    tail: Tail = None,
    follow: Annotated[bool, Query(description="Stream new lines until the job has ended.")] = False,
    format: Annotated[Literal["text", "json"] | None, Query(description="`json`: one object per line.")] = None,
) -> Response:
    """Get the log, oldest line first, as text, or with `format=json` or `Accept: application/json` as JSON lines."""
    as_json = _wants(request, format, "json", ("application/json", NDJSON))
    write = _write_json if as_json else LogLine.to_text
    media_type = NDJSON if as_json else "text/plain; charset=utf-8"
    if follow:
        lines = _send_lines(send_log(request.app.state.logs, service, job, tail), write)
        return _stream(request, lines, media_type)
    found = await run_in_threadpool(read_log, service, job.id, tail)
    return Response("".join(map(write, found)), media_type=media_type)


@resources.get(
    "/{job_id}/metrics",
    response_model=Metrics,
    responses={
        200: {
            "content": {"text/csv": {"schema": {"type": "string"}}},
            "description": "(step, value) pairs by metric, or one line per step.",
        }
    },
)
def get_metrics(
    request: Request,
    job: FoundJob,
    service: Service,
    format: Annotated[Literal["json", "csv"] | None, Query(description="`csv`: one line per step.")] = None,
) -> Response | Metrics:
    """Get `loss, learning_rate, grad_norm, tokens_per_second` of every step, `eval_loss` of every evaluation."""
    with translate_errors():
        series = read_series(service.engine, job.id)
    if _wants(request, format, "csv", ("text/csv",)):
        return Response(series_to_csv(series), media_type="text/csv; charset=utf-8")
    return Metrics.model_construct(series=series)


@resources.get("/{job_id}/checkpoints")
def get_checkpoints(job: FoundJob, service: Service) -> Checkpoints:
    """List the job's stored checkpoints: `step, path, time, bytes, complete, model`."""
    with translate_errors():
        found = list_checkpoints(service.settings, service.engine, job)
    shown = [{**one, "model": name_checkpoint(job, one["step"]) if one["complete"] else None} for one in found]
    return Checkpoints(checkpoints=[respond(Checkpoint, one) for one in shown])


@resources.get("/{job_id}/deliveries")
def get_deliveries(job: FoundJob, service: Service) -> Deliveries:
    """List the job's webhook deliveries, sent and pending, with every attempt."""
    with translate_errors():
        return Deliveries(deliveries=[delivery_view(delivery) for delivery in list_deliveries(service.engine, job.id)])


@resources.post("/{job_id}/deliveries/{delivery_id}/resend")
def resend_delivery(job: FoundJob, delivery_id: str, service: Service) -> Delivery:
    """Send a delivery again, with retries for another three days. The `webhook-id` stays the same."""
    with translate_errors():
        return delivery_view(resend(service.engine, job.id, delivery_id))


def delivery_view(delivery: WebhookDelivery) -> Delivery:
    """Build the response for a delivery."""
    return respond(
        Delivery,
        {
            "delivery_id": str(delivery.id),
            "webhook_id": message_id(delivery),
            "job_id": str(delivery.job_id),
            "event": delivery.event,
            "status": delivery.status,
            "url": delivery.url,
            "state": delivery.state,
            "attempts": delivery.attempts,
            "next_attempt_at": delivery.next_attempt_at,
            "created_at": delivery.created_at,
        },
    )


@resources.get(
    "/{job_id}/adapter",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {TAR: {"schema": {"type": "string", "format": "binary"}}},
            "description": "A tar archive; `X-Checksum-SHA256` is the SHA-256 of its bytes.",
        },
        206: {"description": "The requested `Range` of the archive.", "content": {TAR: {}}},
        409: {"description": "The job has not completed."},
        416: {"description": "`Range` starts after the end of the archive."},
    },
)
def get_adapter(
    job: FoundJob,
    service: Service,
    part: WantedPart = "adapter",
    wanted: Annotated[str | None, Header(alias="Range", description="One range of bytes, `bytes=1048576-`.")] = None,
    only_of: Annotated[
        str | None, Header(alias="If-Range", description="`ETag` of the archive that the client has a part of.")
    ] = None,
) -> Response:
    """Download the trained adapter as a tar archive: PEFT's files, tokenizer and chat template.

    With `part=merged` the merged model of a job with `save_merged_model`.
    """
    download = prepare_download(service.settings, job, part)
    headers, size = _describe_download(download), download.archive.size
    piece = read_range(wanted, only_of, headers["ETag"], size)
    start, stop = piece or (0, size)
    if piece:
        headers |= {"Content-Length": str(stop - start), "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    chunks = download.archive.read(start, stop)
    first = next(chunks)  # opens the files: a missing one is an error response, not a broken connection
    status = 206 if piece else 200
    return StreamingResponse(itertools.chain([first], chunks), status, headers, TAR)


@resources.head(
    "/{job_id}/adapter",
    response_class=Response,
    responses={
        200: {"description": "The headers of the archive, with its length and SHA-256."},
        409: {"description": "The job has not completed."},
    },
)
def describe_adapter(job: FoundJob, service: Service, part: WantedPart = "adapter") -> Response:
    """Get the length and checksum of the archive without its content."""
    headers = _describe_download(prepare_download(service.settings, job, part))
    return Response(media_type=TAR, headers=headers)


def _describe_download(download: Download) -> dict[str, str]:
    return {
        "Accept-Ranges": "bytes",
        "Content-Length": str(download.archive.size),
        "Content-Disposition": f'attachment; filename="{_plain_name(download.archive.name)}.tar"',
        "X-Checksum-SHA256": download.sha256,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(download.sha256)).decode()}:",  # RFC 9530
        "ETag": f'"{download.sha256}"',
    }


def _plain_name(name: str) -> str:
    """Replace characters that are not safe in a header: the name comes from a worker's report."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _stream(request: Request, content: AsyncIterator[Any], media_type: str) -> Response:
    state = request.app.state
    return LimitedStream(state.stream_limit, state.open_streams, content, media_type=media_type, headers=STREAM_HEADERS)


def _wants(request: Request, chosen: str | None, name: str, media_types: tuple[str, ...]) -> bool:
    """Whether this format was requested, by `format` or else by `Accept`."""
    accepted = request.headers.get("accept", "").lower()
    return chosen == name if chosen else any(media_type in accepted for media_type in media_types)


def _write_json(line: LogLine) -> str:
    return json.dumps(line.to_dict()) + "\n"


async def _send_lines(log: AsyncIterator[list[LogLine]], write: Any) -> AsyncIterator[str]:
    async for lines in log:
        yield "".join(map(write, lines))


router = APIRouter()
router.include_router(resources, prefix="/train", tags=["Training API"])
router.include_router(resources, prefix=f"{SFT_PREFIX}/jobs", tags=["SFT API"])
