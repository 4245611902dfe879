"""Re-creates the runs of waiting jobs that were lost when their deployment, work pool or queue was deleted.

With a deployment Prefect deletes its waiting runs; runs of a deleted work pool or queue stay, without one. The job
keeps its id, its place in the queue and its parameters.
"""

import logging
from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import Engine, select, update

from jobs.engine.pool_runs import PoolRuns
from jobs.lifecycle.ends import is_abandoned
from jobs.storage.tables import JobReport
from jobs.vocabulary import (
    DEPLOYMENT_NAME,
    FIRST_QUEUE,
    FIRST_RANK,
    LAST_QUEUE,
    PAGE_SIZE,
    RunState,
    StateName,
    make_state,
)

logger = logging.getLogger(__name__)

WAITING = (RunState.SCHEDULED, RunState.PAUSED)


class Outcome(Enum):
    """What was done about a job whose run is lost."""

    MADE = auto()
    WAITS = auto()  # until the deployment exists again
    DELETED = auto()  # the run was deleted on purpose


def is_lost(run: Mapping[str, Any], deployments: Mapping[str, Any]) -> bool:
    """Whether a waiting run can't be started by any worker: its deployment or its work queue is gone.

    Args:
        deployments: `LostRuns.deployments`.
    """
    deployment_id = run["deployment_id"]
    if is_abandoned(run):
        return True
    if run["state_type"] not in WAITING or deployment_id is None:
        return False
    return deployment_id not in deployments or bool(deployments[deployment_id] and run["work_queue_id"] is None)


class LostRuns:
    """Re-creates lost runs."""

    def __init__(self, engine: Engine, runs: PoolRuns) -> None:
        self._engine = engine
        self._runs = runs

    def deployments(self) -> dict[str, str | None]:
        """Ids of Prefect's deployments, with the id of each one's work queue."""
        response = self._runs.prefect.post("/deployments/filter", json={"limit": PAGE_SIZE}).raise_for_status()
        return {entry["id"]: entry["work_queue_id"] for entry in response.json()}

    def sort(self, job_ids: Collection[UUID]) -> list[UUID]:
        """Sort these jobs in the order of the queue, so that they are re-created in it."""
        if len(job_ids) < 2:
            return [*job_ids]
        wanted = select(JobReport.job_id, JobReport.run).where(JobReport.job_id.in_(job_ids))
        with self._engine.connect() as connection:
            kept = {row.job_id: row.run for row in connection.execute(wanted)}
        ranks = {FIRST_QUEUE: 0, LAST_QUEUE: 2}

        def place(job_id: UUID) -> tuple[int, str]:
            facts = kept.get(job_id) or {}
            since = facts.get("expected_start_time") or facts.get("created") or ""
            return ranks.get(facts.get("work_queue_name") or "", 1), since

        return sorted(job_ids, key=place)

    def make_again(self, job_id: UUID, run: Mapping[str, Any] | None, deployments: Mapping[str, Any]) -> Outcome:
        """Re-create the job's run, replacing this one or one that is gone."""
        with self._engine.connect() as connection:
            report = connection.execute(select(JobReport.run, JobReport.run_id).where(JobReport.job_id == job_id)).one()
        facts: dict[str, Any] = report.run
        if run is None and facts["deployment_id"] in deployments:
            return Outcome.DELETED
        answer = self._runs.prefect.get(f"/deployments/name/{DEPLOYMENT_NAME}")
        is_there = answer.status_code != httpx.codes.NOT_FOUND
        deployment = answer.raise_for_status().json() if is_there else {}
        if deployment.get("work_queue_id") is None:
            logger.warning("Job %s waits for the deployment %s; run `tuneyard up`", job_id, DEPLOYMENT_NAME)
            return Outcome.WAITS
        lost = run["run_id"] if run is not None else str(report.run_id or job_id)
        made = self._create(deployment["id"], {**facts, **(run or {})}, lost)
        state = _state_of(facts, run)
        with self._engine.begin() as connection:
            kept = facts | {"deployment_id": made["deployment_id"], "state": state}
            changed = {"run_id": UUID(made["id"]), "run": kept}
            connection.execute(update(JobReport).where(JobReport.job_id == job_id).values(**changed))
        if run is not None:
            self._runs.prefect.delete(f"/flow_runs/{lost}")  # otherwise the job would be listed twice
        self.enqueue(job_id)
        logger.info("Job %s lost its run; re-created it as %s", job_id, made["id"])
        return Outcome.MADE

    def enqueue(self, job_id: UUID) -> None:
        """Set the re-created run to the state of the lost one."""
        with self._engine.connect() as connection:
            run: dict[str, Any] = connection.execute(
                select(JobReport.run).where(JobReport.job_id == job_id)
            ).scalar_one()
        self._runs.set_state(str(job_id), run["state"], force=True)

    def _create(self, deployment_id: str, run: Mapping[str, Any], lost: str) -> dict[str, Any]:
        body = {
            "parameters": run.get("parameters") or {},
            "name": run["name"],
            "tags": run.get("tags") or [],
            "state": make_state(RunState.PAUSED, name=StateName.MADE_AGAIN),
            "enforce_parameter_schema": False,
            "idempotency_key": f"in place of {lost}",
        }
        if queue := run.get("work_queue_name"):
            self._ensure_queue(queue)
            body["work_queue_name"] = queue
        path = f"/deployments/{deployment_id}/create_flow_run"
        made: dict[str, Any] = self._runs.prefect.post(path, json=body).raise_for_status().json()
        return made

    def _ensure_queue(self, name: str) -> None:
        """Create a work queue in its place; Prefect would make it, as the last one, for a run that names it."""
        wanted = {"name": name} | ({"priority": FIRST_RANK} if name == FIRST_QUEUE else {})
        answer = self._runs.prefect.post(f"/work_pools/{self._runs.work_pool}/queues", json=wanted)
        if answer.status_code != httpx.codes.CONFLICT:  # it exists
            answer.raise_for_status()


def _state_of(facts: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    """The lost run's state: created but not started, paused, or queued since it was submitted."""
    if run is not None and run["state_type"] == RunState.PAUSED and run["state_name"] != StateName.LOST:
        return make_state(RunState.PAUSED, name=run["state_name"])
    name = StateName.AWAITING_RETRY if run is not None and run["run_count"] else None
    since = (run or facts).get("expected_start_time") or facts["created"]
    return make_state(RunState.SCHEDULED, name=name) | {"state_details": {"scheduled_time": since}}
