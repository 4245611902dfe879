"""The Training API: `/train` and `/queue`, as its contract documents them."""

import dataclasses
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from api.dependencies import JobOwner, Service, Strict, VisibleOwner
from api.idempotency import read_request_key
from api.job_lists import write_job_list
from api.job_query import Limit, PageCursor, read_filters, statuses_of
from api.limits import client_name
from api.responses import respond, write_job
from api.training_request import TrainingRequest, config_view, field_names
from jobs.clients.idempotency import RequestKey
from jobs.engine.listing import JobFilters
from jobs.preflight import SubmissionCheck
from jobs.service.files import settle_job
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.status import TRAIN_STATUS_NAMES, JobStatus
from tuneyard_wire.fields import Strategy, TrainStatus
from tuneyard_wire.jobs import Cancelled, Maker, Queue, TrainJob, TrainStarted
from tuneyard_wire.one_line import escape
from tuneyard_wire.service import Description

router = APIRouter(tags=["Training API"])


@router.get("/")
async def describe_api(request: Request) -> Description:
    """Describe the service and list its main endpoints."""
    return Description(
        name=request.app.title,
        version=request.app.version,
        description=request.app.description,
        endpoints={
            "POST /train": "Start a training job (?strategy=queue or reject)",
            "GET /train": "All training jobs",
            "GET /train/{job_id}": "Status of one job",
            "DELETE /train/{job_id}": "Cancel a queued or running job",
            "GET /queue": "Queued jobs, next one first",
            "/api/sft": "The SFT API over the same jobs",
            "/docs": "Interactive documentation",
        },
    )


@router.post("/train")
def start_training(
    body: TrainingRequest,
    service: Service,
    request: Request,
    request_key: Annotated[RequestKey | None, Depends(read_request_key)],
    owner: JobOwner,
    visible: VisibleOwner,
    strategy: Annotated[
        Strategy, Query(description="`queue`: wait in the queue. `reject`: fail if a job runs.")
    ] = "queue",
    strict: Strict = False,
) -> TrainStarted:
    """Start a training job, or queue it behind the others."""
    spec = settle_job(body.to_spec(service.settings.default_dataset), service.settings, visible)
    check = SubmissionCheck(partial(service.preflight.start, spec), field_names(body), strict)
    job = service.submit(spec, strategy, body.priority, request_key, check, client_name(request.scope), owner)
    status, message = "started", "Training job started"
    if job.status is JobStatus.QUEUED:
        status, message = "queued", f"Training job added to queue at position {job.queue_position}"
    warnings = [*job.warnings]
    return respond(TrainStarted, {"job_id": str(job.id), "status": status, "message": message, "warnings": warnings})


@router.get("/train", response_model=list[TrainJob])
def list_training_jobs(
    service: Service,
    request: Request,
    filters: Annotated[JobFilters, Depends(read_filters)],
    status: Annotated[TrainStatus | None, Query(description="Jobs with this status.")] = None,
    limit: Limit = None,
    cursor: PageCursor = None,
) -> Response:
    """List jobs, newest first: all of them, or those that match the filters, page by page."""
    wanted = dataclasses.replace(filters, statuses=statuses_of(status, TRAIN_STATUS_NAMES))
    return write_job_list(request, service, wanted, limit, cursor, lambda job: describe_job(job, service))


@router.get("/train/{job_id}", response_model=TrainJob)
def get_training_job(job_id: str, service: Service, owner: VisibleOwner) -> Response:
    """Get the status, effective configuration, progress and result of one job."""
    return write_job(describe_job(service.get(job_id, owner), service))


@router.delete("/train/{job_id}")
def cancel_training_job(job_id: str, service: Service, owner: VisibleOwner) -> Cancelled:
    """Cancel a queued or running job."""
    service.cancel(job_id, owner)
    return Cancelled(status="cancelled", message=f"Training job {job_id} cancelled")


@router.get("/queue")
def get_queue(service: Service, response: Response, owner: VisibleOwner) -> Queue:
    """Get the queued jobs, and whether a job is running.

    `queue_length` counts all queued jobs; `queued_jobs` has those that the key may see. The header `X-Waiting-For`
    names what they wait for besides the jobs ahead, such as a paused work pool.
    """
    queue = service.queue(owner)
    if queue.waiting_for:
        response.headers["X-Waiting-For"] = escape(queue.waiting_for).encode("ascii", "backslashreplace").decode()
    waiting = [str(job_id) for job_id in queue.waiting]
    length = len(waiting) + queue.others
    return Queue(is_training_running=queue.is_training_running, queue_length=length, queued_jobs=waiting)


def describe_job(job: Job, service: JobService) -> dict[str, Any]:
    """Build the fields of a TrainJob.

    `start_time` is always a number: when the job started, or before that when it was accepted.
    """
    return {
        **common_fields(job),
        "status": TRAIN_STATUS_NAMES[job.status],
        "config": config_view(job.spec, service.settings.default_dataset) if job.spec else job.raw_config,
        "start_time": job.start_time.timestamp() if job.start_time else 0.0,
        "end_time": job.ended_at.timestamp() if job.ended_at else None,
        "tracking_url": job.tracking_url,
        "output_path": job.output_path,
    }


def common_fields(job: Job) -> dict[str, Any]:
    """Build the fields of a job that both APIs share."""
    spec = job.spec
    saved = spec.saved_config if spec else None
    made_by = spec.made_by if spec else None
    return {
        "job_id": str(job.id),
        "name": job.name,
        "priority": job.priority,
        "error": job.error,
        "error_code": job.error_code,
        "attempt": job.attempt,
        "queue_position": job.queue_position,
        "waiting_for": job.waiting_for,
        "phase": job.phase,
        "progress": job.progress,
        "result": job.result,
        "metadata": dict(spec.metadata or {}) if spec else {},  # a copy, since the spec is cached
        "config_id": saved.config_id if saved else None,
        "config_version": saved.version if saved else None,
        "config_name": saved.name if saved else None,
        "made_by": made_by.model_dump(include={*Maker.model_fields}) if made_by else None,
        "owner": str(job.owner) if job.owner else None,
    }
