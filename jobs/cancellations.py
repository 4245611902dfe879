"""Cancellations as a duty of the watchdog: a run that is being cancelled and has no process any more is cancelled."""

import logging
import time

import httpx

from jobs.deployments import PAGE, has_process

logger = logging.getLogger(__name__)

GRACE_SECONDS = 5.0  # a worker that is at it takes its own steps first


class Cancellations:
    """Ends what Prefect leaves in Cancelling for 300 seconds.

    A run whose process starts just as it is cancelled finds itself unfinished and goes, and no worker looks after it;
    so it is with a run whose worker died. For workers of this machine only: others' processes can't be seen from here.
    """

    def __init__(self, work_pool: str, prefect: httpx.Client) -> None:
        self._work_pool = work_pool
        self._prefect = prefect
        self._gone_since: dict[str, float] = {}

    def finish(self) -> None:
        """Cancel those that were without a process for a while."""
        wanted = {
            "work_pools": {"name": {"any_": [self._work_pool]}},
            "flow_runs": {"state": {"type": {"any_": ["CANCELLING"]}}},
            "limit": PAGE,
        }
        runs = self._prefect.post("/flow_runs/filter", json=wanted).raise_for_status().json()
        now = time.monotonic()
        self._gone_since = {run["id"]: self._gone_since.get(run["id"], now) for run in runs if not has_process(run)}
        for run_id, since in self._gone_since.items():
            if now - since < GRACE_SECONDS:
                continue
            state = {"type": "CANCELLED", "name": "Cancelled", "message": "Cancelled; its process was gone."}
            answer = self._prefect.post(f"/flow_runs/{run_id}/set_state", json={"state": state, "force": True})
            answer.raise_for_status()
            logger.info("Job %s is cancelled: its process was gone", run_id)
