"""The SFT API: `/api/sft`, as its contract documents it."""

import dataclasses
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from api.dependencies import JobOwner, Service, Strict, VisibleOwner
from api.idempotency import read_request_key
from api.job_lists import write_job_list
from api.job_query import IdPrefix, Limit, PageCursor, read_filters, statuses_of
from api.limits import client_name
from api.responses import respond, write_job
from api.sft_request import ConfigBody, ConfigChange, TrainBody
from api.train_routes import common_fields
from jobs.clients.idempotency import RequestKey
from jobs.engine.listing import JobFilters
from jobs.preflight import SubmissionCheck
from jobs.service.files import settle_job
from jobs.service.job import Job
from jobs.status import SFT_STATUS_NAMES
from jobs.storage.tables import SavedConfig, SavedConfigVersion
from jobs.vocabulary import PAGE_SIZE
from tuneyard_wire import configs as wire
from tuneyard_wire.fields import Strategy
from tuneyard_wire.jobs import SftJob, SftJobs, SftStarted, SftStatus
from tuneyard_wire.service import Message

router = APIRouter(prefix="/api/sft", tags=["SFT API"])


@router.post("/train")
def start_training(
    body: TrainBody,
    service: Service,
    request: Request,
    request_key: Annotated[RequestKey | None, Depends(read_request_key)],
    owner: JobOwner,
    visible: VisibleOwner,
    strategy: Annotated[
        Strategy, Query(description="`queue`: wait in the queue. `reject`: fail if a job runs.")
    ] = "queue",
    strict: Strict = False,
) -> SftStarted:
    """Start a job, or queue it behind the others."""
    saved = service.configs.get(body.config_id) if body.config_id is not None else None
    spec = settle_job(body.to_spec(saved), service.settings, visible)
    check = SubmissionCheck(partial(service.preflight.start, spec), is_strict=strict)
    job = service.submit(spec, strategy, body.priority, request_key, check, client_name(request.scope), owner)
    warnings = [*job.warnings]
    return respond(SftStarted, {"job_id": str(job.id), "status": SFT_STATUS_NAMES[job.status], "warnings": warnings})


@router.get("/jobs", response_model=SftJobs)
def list_jobs(
    service: Service,
    request: Request,
    filters: Annotated[JobFilters, Depends(read_filters)],
    status: Annotated[SftStatus | None, Query(description="Jobs with this status.")] = None,
    limit: Limit = None,
    cursor: PageCursor = None,
) -> Response:
    """List jobs, newest first: all of them, or those that match the filters, page by page."""
    wanted = dataclasses.replace(filters, statuses=statuses_of(status, SFT_STATUS_NAMES))
    return write_job_list(request, service, wanted, limit, cursor, describe_job, frame=(b'{"jobs":[', b"]}"))


@router.get("/jobs/{job_id}", response_model=SftJob)
def get_job(job_id: str, service: Service, owner: VisibleOwner) -> Response:
    """Get the status, progress and result of one job."""
    return write_job(describe_job(service.get(job_id, owner)))


@router.post("/jobs/{job_id}/stop")
def stop_job(job_id: str, service: Service, owner: VisibleOwner) -> Message:
    """Stop a job in any state."""
    service.stop(job_id, owner)
    return Message(message=f"Job {job_id} stopped")


@router.post("/configs")
def save_config(body: ConfigBody, service: Service) -> wire.SavedConfig:
    """Save a configuration."""
    return config_view(service.configs.save(body.name, body.config))


@router.get("/configs")
def list_configs(
    service: Service,
    limit: Annotated[
        int | None, Query(ge=1, le=PAGE_SIZE, description="Configurations per page; all if unset.")
    ] = None,
    offset: Annotated[int, Query(ge=0, le=2**31, description="Number of configurations to skip.")] = 0,
    name: Annotated[str | None, Query(description="Configurations with this name.")] = None,
    id_prefix: IdPrefix = None,
) -> list[wire.SavedConfig]:
    """List saved configurations, oldest first: all of them, or a page."""
    return [config_view(saved) for saved in service.configs.read_all(limit, offset, name, id_prefix)]


@router.get("/configs/{config_id}")
def get_config(config_id: str, service: Service) -> wire.SavedConfig:
    """Get the current version of a saved configuration."""
    return config_view(service.configs.get(config_id))


@router.put("/configs/{config_id}")
def replace_config(config_id: str, body: ConfigBody, service: Service) -> wire.SavedConfig:
    """Save a new version of a configuration."""
    return config_view(service.configs.update(config_id, body.name, body.config))


@router.patch("/configs/{config_id}")
def change_config(config_id: str, body: ConfigChange, service: Service) -> wire.SavedConfig:
    """Save a new version of a configuration: the current one with these changes."""
    return config_view(service.configs.update(config_id, body.name, body.config, merge=True))


@router.delete("/configs/{config_id}")
def delete_config(config_id: str, service: Service) -> Message:
    """Delete a configuration. Jobs created from it still name it."""
    service.configs.delete(config_id)
    return Message(message=f"Config {config_id} deleted")


@router.get("/configs/{config_id}/versions")
def list_config_versions(config_id: str, service: Service) -> list[wire.ConfigVersion]:
    """List all versions of a configuration, oldest first."""
    return [version_view(version) for version in service.configs.versions(config_id)]


def describe_job(job: Job) -> dict[str, Any]:
    """Build the fields of an SftJob."""
    return {
        **common_fields(job),
        "status": SFT_STATUS_NAMES[job.status],
        "config": job.spec.config.to_dict() if job.spec else job.raw_config,
        "created_at": job.created_at.isoformat() if job.created_at else None,
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "completed_at": job.ended_at.isoformat() if job.ended_at else None,
    }


def config_view(saved: SavedConfig) -> wire.SavedConfig:
    """Build the response for a saved configuration."""
    return respond(wire.SavedConfig, {**_read_version(saved), "updated_at": saved.updated_at})


def version_view(saved: SavedConfigVersion) -> wire.ConfigVersion:
    """Build the response for one version of a saved configuration."""
    return respond(wire.ConfigVersion, _read_version(saved))


def _read_version(saved: SavedConfig | SavedConfigVersion) -> dict[str, Any]:
    return {
        "config_id": str(saved.config_id),
        "name": saved.name,
        "config": saved.config,
        "version": saved.version,
        "created_at": saved.created_at,
    }
