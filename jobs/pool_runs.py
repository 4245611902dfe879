"""`PoolRuns`: the runs of a work pool as those see them who look after them, over Prefect's HTTP API."""

from collections.abc import Sequence
from typing import Any

import httpx

PAGE = 200  # the most Prefect lists at once


class StateRefused(Exception):
    """Prefect did not take the state: the run has moved on meanwhile."""


class PoolRuns:
    """Every method raises httpx.HTTPError when Prefect can't be reached or refuses."""

    def __init__(self, prefect: httpx.Client, work_pool: str) -> None:
        self._prefect = prefect
        self._work_pool = work_pool

    def read(self, state_types: Sequence[str], flow_name: str | None = None) -> list[dict[str, Any]]:
        """All runs in one of these states, of one flow if named, newest first."""
        wanted: dict[str, Any] = {
            "work_pools": {"name": {"any_": [self._work_pool]}},
            "flow_runs": {"state": {"type": {"any_": [*state_types]}}},
            "limit": PAGE,
            "sort": "ID_DESC",
        }
        if flow_name is not None:
            wanted["flows"] = {"name": {"any_": [flow_name]}}
        runs: list[dict[str, Any]] = []
        while True:
            answer = self._prefect.post("/flow_runs/filter", json={**wanted, "offset": len(runs)})
            page = answer.raise_for_status().json()
            runs += page
            if len(page) < PAGE:
                return runs

    def read_history(self, run_id: str) -> list[str]:
        """The types of the states the run has been in."""
        answer = self._prefect.get("/flow_run_states/", params={"flow_run_id": run_id}).raise_for_status()
        return [state["type"] for state in answer.json()]

    def forget_process(self, run_id: str) -> None:
        """Clear the id of a process that is gone; else a cancellation would wait for it."""
        self._prefect.patch(f"/flow_runs/{run_id}", json={"infrastructure_pid": None}).raise_for_status()

    def set_state(self, run_id: str, state: dict[str, Any], force: bool = False) -> None:
        """Propose a state, such as `{"type": "CANCELLED", "name": "Cancelled"}`. Raises StateRefused."""
        answer = self._prefect.post(f"/flow_runs/{run_id}/set_state", json={"state": state, "force": force})
        said = answer.raise_for_status().json()
        if said["status"] != "ACCEPT":
            raise StateRefused(f"{said['status']}: {(said.get('details') or {}).get('reason')}")
