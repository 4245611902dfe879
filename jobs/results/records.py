"""Reads a job's metric series and lists its checkpoints."""

import contextlib
import csv
import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, case, select

from jobs.folders import checkpoint_folder
from jobs.service.job import Job
from jobs.settings import Settings
from jobs.shared_store import SharedStore, list_stored_checkpoints
from jobs.storage.connections import autocommit
from jobs.storage.events import STEP_SERIES
from jobs.storage.tables import JobAttempt, JobEvent
from sft.checkpoints.folders import MANIFEST, is_complete
from sft.errors import InvalidConfig
from sft.sources import pick_losses

METRICS = (*STEP_SERIES[1:], "eval_loss")
Series = dict[str, list[tuple[int, float]]]


def read_series(engine: Engine, job_id: UUID) -> Series:
    """Read `loss, learning_rate, grad_norm, tokens_per_second, eval_loss` as points (step, value) in order of steps.

    If several datasets are evaluated, there is also `eval_loss/<label>` of each.

    Of a step that was trained twice, because the job resumed from an earlier checkpoint, the last values count.
    """
    series: dict[str, dict[int, float]] = {name: {} for name in METRICS}
    evaluation = case((JobEvent.event == "evaluate", JobEvent.data))
    columns = (JobEvent.event, JobEvent.data["step"], JobEvent.data["recent"], evaluation)
    wanted = select(*columns).where(JobEvent.job_id == job_id, JobEvent.event.in_(["step", "evaluate"]))
    with autocommit(engine) as connection:
        for event, step, recent, metrics in connection.execute(wanted.order_by(JobEvent.id)):
            if event == "evaluate":
                _add_points(series, step, pick_losses(metrics))
                continue
            for row in recent or []:
                _add_points(series, row[0], dict(zip(STEP_SERIES[1:], row[1:], strict=True)))
    return {name: sorted(points.items()) for name, points in series.items()}


def _add_points(series: dict[str, dict[int, float]], step: int, values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float):  # a spreadsheet could run text in the CSV as a formula
            series.setdefault(name, {})[step] = value


def series_to_csv(series: Series) -> str:
    """Write CSV with a line per step and a column per metric; empty if a step has no value."""
    by_metric = {name: dict(points) for name, points in series.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *series])
    for step in sorted({step for points in by_metric.values() for step in points}):
        writer.writerow([step, *(by_metric[name].get(step, "") for name in series)])
    return text.getvalue()


def list_checkpoints(settings: Settings, engine: Engine, job: Job) -> list[dict[str, Any]]:
    """List the job's checkpoints in order of steps: `step, path, time, bytes, complete`.

    They are those in the job's folder and in the store, and if this machine lacks the folder or may not read it, those
    of the job's events, which have no `bytes` (null). A checkpoint that is deleted meanwhile is left out.

    Raises:
        StackError: the store can't be reached.
        StoreRefused: it can't be used as it is.
    """
    by_step = _stored_checkpoints(settings, job.id)
    here = _own_checkpoints(settings, job)
    if here is None:
        newest_stored = max(by_step, default=-1)
        limit = job.spec.config.save_total_limit if job.spec else None
        reported = _reported_checkpoints(engine, job.id)[-limit if limit else 0 :]
        here = [checkpoint for checkpoint in reported if checkpoint["step"] > newest_stored]
    by_step |= {checkpoint["step"]: checkpoint for checkpoint in here}
    return [by_step[step] for step in sorted(by_step)]


def _stored_checkpoints(settings: Settings, job_id: UUID) -> dict[int, dict[str, Any]]:
    if (store := SharedStore.find(settings)) is None:
        return {}
    return {
        step: {"step": step, "path": kept.url, "time": kept.time.isoformat(), "bytes": kept.bytes, "complete": True}
        for step, kept in list_stored_checkpoints(store, job_id).items()
    }


def _own_checkpoints(settings: Settings, job: Job) -> list[dict[str, Any]] | None:
    """Those in the job's folder; None if this machine has no such folder."""
    folder = _visible_folder(settings, job)
    if folder is not None:
        with contextlib.suppress(OSError):  # deleted, or another user's
            numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
            described = (_describe_checkpoint(step, path) for step, path in sorted(numbered))
            return [checkpoint for checkpoint in described if checkpoint is not None]
    return None


def _reported_checkpoints(engine: Engine, job_id: UUID) -> list[dict[str, Any]]:
    """Those in the job's events. Training can't resume from one on a host that the job has left."""
    wanted = select(JobEvent.data, JobEvent.created_at).where(JobEvent.job_id == job_id)
    by_step: dict[int, dict[str, Any]] = {}
    with autocommit(engine) as connection:
        host = connection.execute(select(JobAttempt.host).where(JobAttempt.job_id == job_id)).scalar()
        found = connection.execute(wanted.where(JobEvent.event == "checkpoint").order_by(JobEvent.id))
        for data, created_at in found:
            facts = {"step": data["step"], "path": data["path"], "time": created_at.isoformat()}
            by_step[data["step"]] = facts | {"bytes": None, "complete": data.get("host", host) == host}
    return [by_step[step] for step in sorted(by_step)]


_NAME = re.compile(r"checkpoint-([0-9]+)")


def _visible_folder(settings: Settings, job: Job) -> Path | None:
    if job.spec is None:
        return None
    try:
        folder = checkpoint_folder(settings, job.spec.config, job.id)
    except InvalidConfig:  # the folder is allowed where the job ran, but not here
        return None
    return folder if folder.is_dir() else None


def _describe_checkpoint(step: int, folder: Path) -> dict[str, Any] | None:
    """Describe a checkpoint; None if training deleted or replaced it meanwhile."""
    try:
        looked_at = folder.stat().st_ino
        complete = is_complete(folder)
        written_at = (folder / MANIFEST if complete else folder).stat().st_mtime
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if folder.stat().st_ino != looked_at:  # `rglob` of a deleted folder yields nothing, without an error
            return None
    except FileNotFoundError:
        return None
    return {
        "step": step,
        "path": str(folder),
        "time": datetime.fromtimestamp(written_at, UTC).isoformat(),
        "bytes": size,
        "complete": complete,
    }
