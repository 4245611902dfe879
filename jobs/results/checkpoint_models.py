"""Checkpoints of jobs as models: their names, and where their files are."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from jobs.errors import JobNotFound
from jobs.results.records import list_checkpoints
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.service.served_models import ServedModel, ServedModels
from sft.errors import ModelNotFound

CHECKPOINT = re.compile(
    r"(?:ft:(?P<base>[^\0]+):[^:]*:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*):)?"
    r"(?P<job>[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}):ckpt-step-(?P<step>[0-9]{1,9})"
)


def name_checkpoint(job: Job, step: int) -> str | None:
    """`ft:BASE:tuneyard:NAME:JOB_ID:ckpt-step-N`; None for a job without an adapter."""
    if job.spec is None or not job.spec.config.use_lora:
        return None
    return f"ft:{job.spec.config.base_model}:tuneyard:{job.spec.registered_name}:{job.id}:ckpt-step-{step}"


def find_model(service: JobService, model_id: str, owner: UUID | None) -> ServedModel:
    """Find a checkpoint as `name_checkpoint` writes it, or as `JOB_ID:ckpt-step-N`; else as `ServedModels.find`.

    Args:
        owner: of the jobs that the client may see; None for all.

    Raises:
        ModelNotFound: there is no such model, or the job has not, or no longer, this checkpoint.
    """
    if not (match := CHECKPOINT.fullmatch(model_id)):
        return ServedModels(service.settings).find(model_id)
    problem = f"The model {model_id!r} does not exist"
    try:
        job = service.get(match["job"], owner)
    except JobNotFound as error:
        raise ModelNotFound(f"{problem}: no job has the id {match['job']}") from error
    step = int(match["step"])
    name = name_checkpoint(job, step)
    if name is None or job.spec is None:
        raise ModelNotFound(f"{problem}: job {job.id} trains no adapter, and only checkpoints with one can be asked")
    base, adapter = job.spec.config.base_model, job.spec.registered_name
    if match["base"] and (match["base"], match["name"]) != (base, adapter):
        raise ModelNotFound(f"{problem}: job {job.id} trains {adapter} on {base}; its checkpoint is {name}")
    found = _find_step(service, job, step, problem)
    place = str(found["path"])
    folder = place if Path(place).is_absolute() else None  # else it is in the store
    created = int(datetime.fromisoformat(found["time"]).timestamp())
    return ServedModel(name, base, f"{job.id}/{step}", created, {"job_id": str(job.id), "step": step, "folder": folder})


def _find_step(service: JobService, job: Job, step: int, problem: str) -> dict[str, Any]:
    listed = list_checkpoints(service.settings, service.engine, job)
    usable = {one["step"]: one for one in listed if one["complete"] and one["bytes"] is not None}
    if step in usable:
        return usable[step]
    if any(one["step"] == step and one["bytes"] is None for one in listed):
        raise ModelNotFound(
            f"{problem} here: the checkpoint of step {step} is on another machine; set TUNEYARD_STORE so that "
            "checkpoints can be asked anywhere"
        )
    kept = ", ".join(map(str, usable)) or "none"
    limit = job.spec.config.save_total_limit if job.spec else None
    removal = f"; older ones are removed (save_total_limit {limit})" if limit else ""
    raise ModelNotFound(f"{problem}: job {job.id} has no checkpoint of step {step}. Its steps are: {kept}{removal}")
