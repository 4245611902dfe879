"""The SFT API: `/api/sft`, as its contract documents it."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from api.service import get_service
from jobs.job import Job
from jobs.service import JobService
from jobs.spec import JobSpec, TrackingBackend
from jobs.status import SFT_WORDS
from jobs.store import SavedConfig
from sft.config import SFTConfig
from sft.templates import check_template_name

router = APIRouter(prefix="/api/sft", tags=["SFT API"])
Service = Annotated[JobService, Depends(get_service)]


class TrainBody(BaseModel, extra="forbid"):
    """A job: its configuration, and what to do around it."""

    config: dict[str, Any] = Field(description="The fields of SFTConfig.")
    adapter_name: str | None = Field(None, description="The adapter's name in the registry; made up if unset.")
    tracking_backend: TrackingBackend = "mlflow"
    webhook_url: str | None = None


class ConfigBody(BaseModel, extra="forbid"):
    """A configuration to keep; it may be partial, only starting a job validates it."""

    name: str = Field(min_length=1)
    config: dict[str, Any]


@router.post("/train")
def start_training(body: TrainBody, service: Service) -> dict[str, Any]:
    """Start a job."""
    config = SFTConfig.from_dict(body.config)
    check_template_name(config.template_name)
    around = body.model_dump(exclude={"config"})
    job = service.submit(JobSpec.build(config=config, **around))
    return {"job_id": str(job.id), "status": SFT_WORDS[job.status]}


@router.get("/jobs")
def list_jobs(service: Service) -> dict[str, Any]:
    """Every job, newest first."""
    return {"jobs": [job_view(job) for job in service.list_jobs()]}


@router.get("/jobs/{job_id}")
def get_job(job_id: str, service: Service) -> dict[str, Any]:
    """Status, progress and result of one job."""
    return job_view(service.get(job_id))


@router.post("/jobs/{job_id}/stop")
def stop_job(job_id: str, service: Service) -> dict[str, Any]:
    """Stop a job in whatever state it is."""
    service.cancel(job_id)
    return {"message": f"Job {job_id} stopped"}


@router.post("/configs")
def save_config(body: ConfigBody, service: Service) -> dict[str, Any]:
    """Keep a configuration."""
    saved = service.save_config(body.name, body.config)
    return {"config_id": str(saved.config_id), "name": saved.name}


@router.get("/configs")
def list_configs(service: Service) -> list[dict[str, Any]]:
    """Every saved configuration."""
    return [config_view(saved) for saved in service.list_configs()]


@router.get("/configs/{config_id}")
def get_config(config_id: str, service: Service) -> dict[str, Any]:
    """One saved configuration."""
    return config_view(service.get_config(config_id))


def job_view(job: Job) -> dict[str, Any]:
    """A job in the SFT API's words. Times are ISO 8601; what is not known yet is null."""
    return {
        "job_id": str(job.id),
        "status": SFT_WORDS[job.status],
        "created_at": job.created_at.isoformat() if job.created_at else None,
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "completed_at": job.ended_at.isoformat() if job.ended_at else None,
        "error": job.error,
        "result": job.result,
        "phase": job.phase,
        "progress": job.progress,
        "config": job.spec.config.to_dict() if job.spec else job.raw_config,
    }


def config_view(saved: SavedConfig) -> dict[str, Any]:
    """A saved configuration as it was given."""
    return {"config_id": str(saved.config_id), "name": saved.name, "config": saved.config}
