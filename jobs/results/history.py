"""Reads the duration and speed of completed jobs from their reports and events."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, select

from jobs.storage.connections import autocommit, translate_errors
from jobs.storage.tables import JobEvent, JobReport

RUNS_READ = 20
LATEST = datetime.max.replace(tzinfo=UTC)
STARTED = "starting"  # the phases whose times are used
READY = ("evaluating", "training")  # which one comes first depends on what is trained
SAVED = ("checking", "registering")  # the first one is left out where the adapter is not checked


def read_past_runs(engine: Engine, base_model: str, limit: int = RUNS_READ) -> list[dict[str, Any]]:
    """Read the newest completed jobs of a base model.

    Each has `tokens_per_second, tokens_per_step, trainable_parameters, dtype, device, gradient_checkpointing`, and
    `startup_seconds` and `finish_seconds`, None if unknown.

    Jobs that resumed from a checkpoint are left out, as their figures cover only a part.

    Raises:
        StackError: the database can't be reached.
    """
    wanted = select(JobReport.job_id, JobReport.result["metrics"]).where(
        JobReport.result["base_model"].astext == base_model
    )
    with translate_errors(), autocommit(engine) as connection:
        found = connection.execute(wanted.order_by(JobReport.updated_at.desc()).limit(limit)).all()
        metrics = {row[0]: row[1] for row in found if row[1] and row[1].get("steps")}
        events: dict[UUID, list[tuple[str, dict[str, Any], datetime]]] = {job_id: [] for job_id in metrics}
        columns = select(JobEvent.job_id, JobEvent.event, JobEvent.data, JobEvent.created_at)
        kinds = JobEvent.event.in_(["phase", "begin", "end"])
        for job_id, event, data, at in connection.execute(
            columns.where(JobEvent.job_id.in_(metrics), kinds).order_by(JobEvent.id)
        ):
            events[job_id].append((event, data, at))
    runs = (_describe(metrics[job_id], events[job_id]) for job_id in metrics)
    return [run for run in runs if run]


def _describe(metrics: dict[str, Any], events: list[tuple[str, dict[str, Any], datetime]]) -> dict[str, Any] | None:
    begins = [data for event, data, _ in events if event == "begin"]
    if len(begins) != 1 or begins[0].get("step"):
        return None
    phases: dict[str, datetime] = {}
    for event, data, at in events:
        phases.setdefault(str(data.get("phase")) if event == "phase" else event, at)
    begin = begins[0]
    return {
        "tokens_per_second": metrics["tokens_per_second"],
        "tokens_per_step": metrics["tokens"] / metrics["steps"],
        "trainable_parameters": begin["trainable_parameters"],
        "dtype": begin["dtype"],
        "device": begin["device"].split(":")[0],
        "gradient_checkpointing": begin["gradient_checkpointing"],
        "startup_seconds": _between(phases, STARTED, _find_first(phases, READY)),
        "finish_seconds": _between(phases, _find_first(phases, SAVED), "end"),
    }


def _find_first(times: dict[str, datetime], phases: tuple[str, ...]) -> str:
    return min(phases, key=lambda phase: times.get(phase, LATEST))


def _between(times: dict[str, datetime], start: str, end: str) -> float | None:
    return (times[end] - times[start]).total_seconds() if start in times and end in times else None
