"""The Training API: `/train` and `/queue`, as its contract documents them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from api.service import get_service
from api.training_request import TrainingRequest, config_view
from jobs.job import Job
from jobs.service import JobService, Strategy
from jobs.status import TRAIN_WORDS, JobStatus
from sft.errors import JobConflict

router = APIRouter(tags=["Training API"])
Service = Annotated[JobService, Depends(get_service)]


@router.get("/")
def describe_api(request: Request) -> dict[str, Any]:
    """What this service is and where its endpoints are."""
    return {
        "name": request.app.title,
        "version": request.app.version,
        "description": request.app.description,
        "endpoints": {
            "POST /train": "Start a training job (?strategy=queue or reject)",
            "GET /train": "All training jobs",
            "GET /train/{job_id}": "Status of one job",
            "DELETE /train/{job_id}": "Cancel a queued or running job",
            "GET /queue": "Jobs that wait, next one first",
            "/api/sft": "The SFT API over the same jobs",
            "/docs": "Interactive documentation",
        },
    }


@router.post("/train")
def start_training(
    body: TrainingRequest,
    service: Service,
    strategy: Annotated[Strategy, Query(description="Wait in line, or fail when a job is running.")] = "queue",
) -> dict[str, Any]:
    """Start a training job, or put it in line behind the others."""
    spec = body.to_spec(service.settings.default_dataset)
    job = service.submit(spec, strategy)
    if job.status is JobStatus.QUEUED:
        message = f"Training job added to queue at position {job.queue_position}"
        return {"job_id": str(job.id), "status": "queued", "message": message}
    return {"job_id": str(job.id), "status": "started", "message": "Training job started"}


@router.get("/train")
def list_training_jobs(service: Service) -> list[dict[str, Any]]:
    """Every job, newest first."""
    return [job_view(job, service) for job in service.list_jobs()]


@router.get("/train/{job_id}")
def get_training_job(job_id: str, service: Service) -> dict[str, Any]:
    """Status, effective configuration, progress and outcome of one job."""
    return job_view(service.get(job_id), service)


@router.delete("/train/{job_id}")
def cancel_training_job(job_id: str, service: Service) -> dict[str, Any]:
    """Cancel a job: a queued one goes at once, a running one is stopped."""
    before = service.get(job_id)
    if before.status.is_terminal:
        raise JobConflict(f"Job {job_id} has already {TRAIN_WORDS[before.status]}; only a queued or running job can be")
    service.cancel(job_id)
    return {"status": "cancelled", "message": f"Training job {job_id} cancelled"}


@router.get("/queue")
def get_queue(service: Service) -> dict[str, Any]:
    """Whether a job is being trained, and which ones wait."""
    queue = service.queue()
    waiting = [str(job_id) for job_id in queue.waiting]
    return {"is_training_running": queue.is_training_running, "queue_length": len(waiting), "queued_jobs": waiting}


def job_view(job: Job, service: JobService) -> dict[str, Any]:
    """A job in the Training API's words. Times are epoch seconds; what is not known yet is null."""
    return {
        "job_id": str(job.id),
        "status": TRAIN_WORDS[job.status],
        "config": config_view(job.spec, service.settings.default_dataset) if job.spec else job.raw_config,
        "start_time": job.started_at.timestamp() if job.started_at else None,
        "end_time": job.ended_at.timestamp() if job.ended_at else None,
        "tracking_url": job.tracking_url,
        "error": job.error,
        "output_path": job.output_path,
        "queue_position": job.queue_position,
        "phase": job.phase,
        "progress": job.progress,
        "result": job.result,
    }
