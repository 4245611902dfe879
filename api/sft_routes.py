"""The SFT API: `/api/sft`, as its contract documents it."""

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from api.answers import (
    AsIs,
    ConfigVersion,
    Message,
    SavedConfiguration,
    SftJob,
    SftJobs,
    SftStarted,
)
from api.idempotency import read_request_key
from api.job_query import IdPrefix, Limit, PageCursor, announce_next_page, read_filters, statuses_of
from api.service import get_service
from api.sft_request import ConfigBody, ConfigChange, TrainBody
from api.strictness import Strict
from api.train_routes import origin_view
from jobs.idempotency import RequestKey
from jobs.job import Job
from jobs.listing import JobFilters
from jobs.preflight import Doubts
from jobs.service import JobService, Strategy
from jobs.status import SFT_WORDS, SftWord
from jobs.store import SavedConfig, SavedConfigVersion
from jobs.vocabulary import PAGE_SIZE

router = APIRouter(prefix="/api/sft", tags=["SFT API"])
Service = Annotated[JobService, Depends(get_service)]


@router.post("/train")
def start_training(
    body: TrainBody,
    service: Service,
    request_key: Annotated[RequestKey | None, Depends(read_request_key)],
    strategy: Annotated[Strategy, Query(description="Wait in the queue, or fail when a job is running.")] = "queue",
    strict: Strict = False,
) -> AsIs[SftStarted]:
    """Start a job."""
    saved = service.configs.get(body.config_id) if body.config_id is not None else None
    spec = body.to_spec(saved)
    doubts = Doubts.of(service.preflight.look(spec), {}, strict)
    job = service.submit(spec, strategy, body.priority, request_key, doubts)
    started: SftStarted = {"job_id": str(job.id), "status": SFT_WORDS[job.status]}
    return {**started, "warnings": [*job.warnings]} if job.warnings else started


@router.get("/jobs")
def list_jobs(
    service: Service,
    request: Request,
    response: Response,
    filters: Annotated[JobFilters, Depends(read_filters)],
    status: Annotated[SftWord | None, Query(description="Jobs in this state.")] = None,
    limit: Limit = None,
    cursor: PageCursor = None,
) -> AsIs[SftJobs]:
    """Jobs, newest first: every one, or those that the filters let through, page by page."""
    wanted = dataclasses.replace(filters, statuses=statuses_of(status, SFT_WORDS))
    page = service.list_jobs(wanted, limit, cursor)
    announce_next_page(request, response, page.next_cursor)
    return {"jobs": [job_view(job) for job in page.jobs]}


@router.get("/jobs/{job_id}")
def get_job(job_id: str, service: Service) -> AsIs[SftJob]:
    """Status, progress and result of one job."""
    return job_view(service.get(job_id))


@router.post("/jobs/{job_id}/stop")
def stop_job(job_id: str, service: Service) -> AsIs[Message]:
    """Stop a job in whatever state it is."""
    service.stop(job_id)
    return {"message": f"Job {job_id} stopped"}


@router.post("/configs")
def save_config(body: ConfigBody, service: Service) -> AsIs[SavedConfiguration]:
    """Keep a configuration."""
    return config_view(service.configs.save(body.name, body.config))


@router.get("/configs")
def list_configs(
    service: Service,
    limit: Annotated[int | None, Query(ge=1, le=PAGE_SIZE, description="Configurations a page; all if unset.")] = None,
    offset: Annotated[int, Query(ge=0, le=2**31, description="How many to leave out.")] = 0,
    name: Annotated[str | None, Query(description="Configurations of this name.")] = None,
    id_prefix: IdPrefix = None,
) -> AsIs[list[SavedConfiguration]]:
    """Every saved configuration, oldest first, or a page of them."""
    return [config_view(saved) for saved in service.configs.read_all(limit, offset, name, id_prefix)]


@router.get("/configs/{config_id}")
def get_config(config_id: str, service: Service) -> AsIs[SavedConfiguration]:
    """One saved configuration."""
    return config_view(service.configs.get(config_id))


@router.put("/configs/{config_id}")
def replace_config(config_id: str, body: ConfigBody, service: Service) -> AsIs[SavedConfiguration]:
    """Keep a new version of a configuration in place of the present one."""
    return config_view(service.configs.update(config_id, body.name, body.config))


@router.patch("/configs/{config_id}")
def change_config(config_id: str, body: ConfigChange, service: Service) -> AsIs[SavedConfiguration]:
    """Keep a new version of a configuration: the present one with these changes."""
    return config_view(service.configs.update(config_id, body.name, body.config, merge=True))


@router.delete("/configs/{config_id}")
def delete_config(config_id: str, service: Service) -> AsIs[Message]:
    """Delete a configuration. Jobs that were made from it still name it."""
    service.configs.delete(config_id)
    return {"message": f"Config {config_id} deleted"}


@router.get("/configs/{config_id}/versions")
def list_config_versions(config_id: str, service: Service) -> AsIs[list[ConfigVersion]]:
    """Every version of a configuration, the first one first."""
    return [version_view(version) for version in service.configs.versions(config_id)]


def job_view(job: Job) -> SftJob:
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
        "error_code": job.error_code,
        "attempt": job.attempt,
        "result": job.result,
        "phase": job.phase,
        "progress": job.progress,
        "queue_position": job.queue_position,
        "waiting_for": job.waiting_for,
        "config": job.spec.config.to_dict() if job.spec else job.raw_config,
        **origin_view(job),
    }


def config_view(saved: SavedConfig) -> SavedConfiguration:
    """A saved configuration as it was given."""
    return {**version_view(saved), "updated_at": saved.updated_at.isoformat()}


def version_view(saved: SavedConfig | SavedConfigVersion) -> ConfigVersion:
    """One version of a saved configuration."""
    return {
        "config_id": str(saved.config_id),
        "name": saved.name,
        "config": saved.config,
        "version": saved.version,
        "created_at": saved.created_at.isoformat(),
    }
