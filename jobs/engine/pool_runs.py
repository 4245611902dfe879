"""`PoolRuns`: reads and changes the runs of a work pool over Prefect's HTTP API, for the watchdog."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import Engine

from jobs.storage.run_ids import RunIds
from jobs.vocabulary import PAGE_SIZE


class StateRefused(Exception):
    """Prefect rejected the state: the run has changed meanwhile."""


class PoolRuns:
    """The runs of one work pool. Every method raises httpx.HTTPError if Prefect fails, SQLAlchemyError if the
    database does.

    `id` of a run is its job's id; `run_id` is Prefect's own, which differs for a job whose first run was lost.
    """

    def __init__(self, prefect: httpx.Client, work_pool: str, engine: Engine | None = None) -> None:
        self.prefect = prefect
        self.work_pool = work_pool
        self._engine = engine

    def read(self, state_types: Sequence[str], flow_name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Runs of this flow in one of these states, and those of other flows in the pool, each newest first.

        Runs of this flow whose queue was deleted belong to no pool any more and are included.
        """
        states = {"state": {"type": {"any_": [*state_types]}}}
        runs = [run for run in self.find(states, flow_name) if self._is_mine(run)]
        ids = {run["run_id"] for run in runs}
        others = self.find(states, work_pool=self.work_pool)
        return runs, [run for run in others if run["run_id"] not in ids]

    def _is_mine(self, run: Mapping[str, Any]) -> bool:
        has_pool = run["work_pool_name"] is not None
        return run["work_pool_name"] == self.work_pool if has_pool else run["deployment_id"] is not None

    def find(
        self, flow_runs: dict[str, Any], flow_name: str | None = None, work_pool: str | None = None
    ) -> list[dict[str, Any]]:
        """All runs that match a Prefect filter, newest first, of one flow or pool if given."""
        wanted: dict[str, Any] = {"flow_runs": flow_runs, "limit": PAGE_SIZE, "sort": "ID_DESC"}
        if work_pool is not None:
            wanted["work_pools"] = {"name": {"any_": [work_pool]}}
        if flow_name is not None:
            wanted["flows"] = {"name": {"any_": [flow_name]}}
        runs: list[dict[str, Any]] = []
        while True:
            response = self.prefect.post("/flow_runs/filter", json={**wanted, "offset": len(runs)})
            page = response.raise_for_status().json()
            runs += page
            if len(page) < PAGE_SIZE:
                return self.name_jobs(runs)

    def find_by_id(self, job_ids: Iterable[UUID]) -> dict[UUID, dict[str, Any]]:
        """The existing runs of these jobs, by job id, of any flow and pool."""
        ids, found = RunIds(self._engine), dict[UUID, dict[str, Any]]()
        left = [str(ids.run_of(job_id)) for job_id in job_ids]
        while left:
            some, left = left[:PAGE_SIZE], left[PAGE_SIZE:]
            found |= {UUID(run["id"]): run for run in self.find({"id": {"any_": some}})}
        return found

    def name_jobs(self, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Replace the ids of these runs by those of their jobs."""
        ids = RunIds(self._engine) if runs else RunIds(None)
        return [{**run, "id": str(ids.job_of(UUID(run["id"]))), "run_id": run["id"]} for run in runs]

    def has_deployment(self, run: Mapping[str, Any]) -> bool:
        """Whether the run's deployment still exists; true for a run without one."""
        if run["deployment_id"] is None:
            return True
        response = self.prefect.get(f"/deployments/{run['deployment_id']}")
        if response.status_code != httpx.codes.NOT_FOUND:
            response.raise_for_status()
        return response.is_success

    def read_history(self, job_id: str) -> list[str]:
        """The types of the states the run has been in."""
        run_id = self._run_of(job_id)
        response = self.prefect.get("/flow_run_states/", params={"flow_run_id": run_id}).raise_for_status()
        return [state["type"] for state in response.json()]

    def forget_process(self, job_id: str) -> None:
        """Clear the id of a process that is gone; a cancellation would wait for it."""
        change = {"infrastructure_pid": None}
        self.prefect.patch(f"/flow_runs/{self._run_of(job_id)}", json=change).raise_for_status()

    def set_tags(self, job_id: str, tags: Iterable[str]) -> None:
        """Replace the tags of a run."""
        change = {"tags": sorted(tags)}
        self.prefect.patch(f"/flow_runs/{self._run_of(job_id)}", json=change).raise_for_status()

    def set_state(self, job_id: str, state: dict[str, Any], force: bool = False) -> None:
        """Propose a state, see `jobs.vocabulary.make_state`. Raises StateRefused."""
        wanted = {"state": state, "force": force}
        response = self.prefect.post(f"/flow_runs/{self._run_of(job_id)}/set_state", json=wanted)
        said = response.raise_for_status().json()
        if said["status"] != "ACCEPT":
            raise StateRefused(f"{said['status']}: {(said.get('details') or {}).get('reason')}")

    def _run_of(self, job_id: str) -> str:
        return str(RunIds(self._engine).run_of(UUID(job_id)))
