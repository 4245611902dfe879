"""`PoolWorkers`: which worker has a run, and whether that worker is online, as Prefect reports it.

A worker labels each run that it takes with its own name and type. It is offline three intervals after its last
heartbeat, 90 s by default (`PREFECT_WORKER_HEARTBEAT_SECONDS`). Prefect's own service that marks workers offline runs
every 15 s, and may be switched off.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from jobs.vocabulary import PAGE_SIZE

NAME, KIND = "prefect.worker.name", "prefect.worker.type"  # labels of a run
INTERVAL_SECONDS = 30.0  # between heartbeats, for a worker that does not say
MISSED_HEARTBEATS = 3  # as in Prefect
PROCESS = "process"  # the type of worker whose runs are on its own machine and end with it


class PoolWorkers:
    """The workers of one pool, read from Prefect on first use after `refresh`."""

    def __init__(self, prefect: httpx.Client, work_pool: str) -> None:
        self._prefect = prefect
        self._work_pool = work_pool
        self._online: set[str] | None = None

    def refresh(self) -> None:
        """Discard what was read; the next call reads from Prefect."""
        self._online = None

    def has_online(self, run: Mapping[str, Any]) -> bool:
        """Whether the run's worker is online; for a run without a worker's name, whether any is. Raises HTTPError."""
        name = name_worker(run)
        return self.count_online() > 0 if name is None else name in self._find_online()

    def count_online(self) -> int:
        """How many workers are online. Raises HTTPError."""
        return len(self._find_online())

    def _find_online(self) -> set[str]:
        if self._online is None:
            self._online = self._read()
        return self._online

    def _read(self) -> set[str]:
        path, online = f"/work_pools/{self._work_pool}/workers/filter", set[str]()
        offset = 0
        while True:
            response = self._prefect.post(path, json={"limit": PAGE_SIZE, "offset": offset})
            if response.status_code == httpx.codes.NOT_FOUND:
                return online
            page = response.raise_for_status().json()
            now = _read_time(response)
            online |= {worker["name"] for worker in page if _is_online(worker, now)}
            offset += len(page)
            if len(page) < PAGE_SIZE:
                return online


def _read_time(response: httpx.Response) -> datetime:
    """The current time by the server's clock, which also stamps the heartbeats."""
    said = response.headers.get("Date")
    return parsedate_to_datetime(said) if said else datetime.now(UTC)


def _is_online(worker: Mapping[str, Any], now: datetime) -> bool:
    if worker["status"] != "ONLINE" or worker["last_heartbeat_time"] is None:
        return False
    silence = now - datetime.fromisoformat(worker["last_heartbeat_time"])
    interval = worker.get("heartbeat_interval_seconds") or INTERVAL_SECONDS
    return silence < timedelta(seconds=MISSED_HEARTBEATS * interval)


def name_worker(run: Mapping[str, Any]) -> str | None:
    """Name the worker that has the run, or had it last."""
    return (run.get("labels") or {}).get(NAME)


def outlives_worker(run: Mapping[str, Any]) -> bool:
    """Whether the run has a container or pod, which outlives its worker."""
    kind = (run.get("labels") or {}).get(KIND)
    return kind not in (None, PROCESS) and bool(run["infrastructure_pid"])
