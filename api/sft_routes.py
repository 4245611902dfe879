"""The SFT API: `/api/sft`, as its contract documents it."""

import dataclasses
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field, model_validator

from api.idempotency import read_request_key
from api.job_query import Limit, PageCursor, announce_next_page, read_filters, statuses_of
from api.service import get_service
from api.train_routes import origin_view
from jobs.idempotency import RequestKey
from jobs.job import Job
from jobs.listing import JobFilters
from jobs.queue import Priority
from jobs.service import JobService
from jobs.spec import JobSpec, Metadata, SavedConfigRef, TrackingBackend
from jobs.status import SFT_WORDS
from jobs.store import SavedConfig, SavedConfigVersion
from sft.config import SFTConfig
from sft.templates import check_template_name

router = APIRouter(prefix="/api/sft", tags=["SFT API"])
Service = Annotated[JobService, Depends(get_service)]
Word = Literal["pending", "running", "completed", "failed", "stopped"]


class TrainBody(BaseModel, extra="forbid"):
    """A job: its configuration, and what to do around it."""

    config: dict[str, Any] | None = Field(None, description="The fields of SFTConfig; laid over config_id's if set.")
    config_id: str | None = Field(None, description="Start from this saved configuration.")
    adapter_name: str | None = Field(None, description="The adapter's name in the registry; made up if unset.")
    tracking_backend: TrackingBackend = "mlflow"
    webhook_url: str | None = None
    metadata: Metadata | None = Field(None, description="Up to 16 pairs of text, kept with the job and filtered by.")
    priority: Priority = Field("normal", description="Jobs of a higher priority start first.")

    @model_validator(mode="after")
    def _check_config(self) -> Self:
        if self.config is None and self.config_id is None:
            raise ValueError("config is required; give the fields of SFTConfig, or config_id")
        return self

    def to_spec(self, saved: SavedConfig | None) -> JobSpec:
        """The job that is asked for. Raises InvalidConfig."""
        config = SFTConfig.from_dict({**(saved.config if saved else {}), **(self.config or {})})
        check_template_name(config.template_name)
        origin = (
            SavedConfigRef(config_id=str(saved.config_id), version=saved.version, name=saved.name) if saved else None
        )
        around = self.model_dump(include={"adapter_name", "tracking_backend", "webhook_url", "metadata"})
        return JobSpec.build(config=config, saved_config=origin, **around)


class ConfigBody(BaseModel, extra="forbid"):
    """A configuration to keep; it may be partial, only starting a job validates it."""

    name: str = Field(min_length=1)
    config: dict[str, Any]


class ConfigChange(BaseModel, extra="forbid"):
    """What to change about a saved configuration; the fields of `config` are laid over the present ones."""

    name: str | None = Field(None, min_length=1)
    config: dict[str, Any] | None = None


@router.post("/train")
def start_training(
    body: TrainBody, service: Service, request_key: Annotated[RequestKey | None, Depends(read_request_key)]
) -> dict[str, Any]:
    """Start a job."""
    saved = service.configs.get(body.config_id) if body.config_id is not None else None
    job = service.submit(body.to_spec(saved), priority=body.priority, request=request_key)
    return {"job_id": str(job.id), "status": SFT_WORDS[job.status]}


@router.get("/jobs")
def list_jobs(
    service: Service,
    request: Request,
    response: Response,
    filters: Annotated[JobFilters, Depends(read_filters)],
    status: Annotated[Word | None, Query(description="Jobs in this state.")] = None,
    limit: Limit = None,
    cursor: PageCursor = None,
) -> dict[str, Any]:
    """Jobs, newest first: every one, or those that the filters let through, page by page."""
    wanted = dataclasses.replace(filters, statuses=statuses_of(status, SFT_WORDS))
    page = service.list_jobs(wanted, limit, cursor)
    announce_next_page(request, response, page.next_cursor)
    return {"jobs": [job_view(job) for job in page.jobs]}


@router.get("/jobs/{job_id}")
def get_job(job_id: str, service: Service) -> dict[str, Any]:
    """Status, progress and result of one job."""
    return job_view(service.get(job_id))


@router.post("/jobs/{job_id}/stop")
def stop_job(job_id: str, service: Service) -> dict[str, Any]:
    """Stop a job in whatever state it is."""
    service.stop(job_id)
    return {"message": f"Job {job_id} stopped"}


@router.post("/configs")
def save_config(body: ConfigBody, service: Service) -> dict[str, Any]:
    """Keep a configuration."""
    return config_view(service.configs.save(body.name, body.config))


@router.get("/configs")
def list_configs(
    service: Service,
    limit: Annotated[int | None, Query(ge=1, le=200, description="Configurations a page; all if unset.")] = None,
    offset: Annotated[int, Query(ge=0, le=2**31, description="How many to leave out.")] = 0,
) -> list[dict[str, Any]]:
    """Every saved configuration, oldest first, or a page of them."""
    return [config_view(saved) for saved in service.configs.read_all(limit, offset)]


@router.get("/configs/{config_id}")
def get_config(config_id: str, service: Service) -> dict[str, Any]:
    """One saved configuration."""
    return config_view(service.configs.get(config_id))


@router.put("/configs/{config_id}")
def replace_config(config_id: str, body: ConfigBody, service: Service) -> dict[str, Any]:
    """Keep a new version of a configuration in place of the present one."""
    return config_view(service.configs.update(config_id, body.name, body.config))


@router.patch("/configs/{config_id}")
def change_config(config_id: str, body: ConfigChange, service: Service) -> dict[str, Any]:
    """Keep a new version of a configuration: the present one with these changes."""
    return config_view(service.configs.update(config_id, body.name, body.config, merge=True))


@router.delete("/configs/{config_id}")
def delete_config(config_id: str, service: Service) -> dict[str, Any]:
    """Delete a configuration. Jobs that were made from it still name it."""
    service.configs.delete(config_id)
    return {"message": f"Config {config_id} deleted"}


@router.get("/configs/{config_id}/versions")
def list_config_versions(config_id: str, service: Service) -> list[dict[str, Any]]:
    """Every version of a configuration, the first one first."""
    return [version_view(version) for version in service.configs.versions(config_id)]


def job_view(job: Job) -> dict[str, Any]:
    """A job in the SFT API's words. Times are ISO 8601; what is not known yet is null."""
    return {
        "job_id": str(job.id),
        "name": job.name,
        "status": SFT_WORDS[job.status],
        "priority": job.priority,
        "created_at": job.created_at.isoformat() if job.created_at else None,
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "completed_at": job.ended_at.isoformat() if job.ended_at else None,
        "error": job.error,
        "result": job.result,
        "phase": job.phase,
        "progress": job.progress,
        "queue_position": job.queue_position,
        "config": job.spec.config.to_dict() if job.spec else job.raw_config,
        **origin_view(job),
    }


def config_view(saved: SavedConfig) -> dict[str, Any]:
    """A saved configuration as it was given."""
    return version_view(saved) | {"updated_at": saved.updated_at.isoformat()}


def version_view(saved: SavedConfig | SavedConfigVersion) -> dict[str, Any]:
    """One version of a saved configuration."""
    return {
        "config_id": str(saved.config_id),
        "name": saved.name,
        "config": saved.config,
        "version": saved.version,
        "created_at": saved.created_at.isoformat(),
    }
