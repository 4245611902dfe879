"""What is seen of a pool from outside: which jobs run where, what waits for a host, what the store has."""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import psutil
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import select

from jobs.storage.tables import JobEvent, engine_for
from tests.chaos.service import find_job_processes
from tests.pool.hosts import HOST
from tests.pool.pool import WORKERS, Pool
from tests.pool.servers import BUCKET

LOOK_SECONDS = 1.0
MANIFEST = re.compile(r"jobs/([0-9a-f-]{36})/checkpoints/checkpoint-(\d+)\.json$")
UNFINISHED = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "CRASHED"]


class Resume(NamedTuple):
    """An attempt that began after another one, and the newest checkpoint that the store had by then."""

    job_id: str
    attempt: int  # from 2
    step: int
    stored_step: int


class Observer(threading.Thread):
    """Looks every second until closed.

    Attributes:
        jobs: ids of the jobs with processes, by host.
        states: Prefect's state of each run that has not ended, by job.
        in_line: the moments at which a job was seen waiting while no host was free for it, by job.
        stored: when each checkpoint was first seen in the store, by job and step.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="observer")
        self._pool = pool
        self._prefect = pool.servers.open_prefect()
        self._s3 = pool.servers.open_s3()
        self._stopped = threading.Event()
        self.jobs: dict[str, set[str]] = {}
        self.states: dict[str, str] = {}
        self.in_line: dict[str, list[float]] = defaultdict(list)
        self.stored: dict[str, dict[int, datetime]] = defaultdict(dict)

    def run(self) -> None:
        """Look again and again."""
        while not self._stopped.wait(LOOK_SECONDS):
            with suppress(httpx.HTTPError, BotoCoreError, ClientError):
                self.look()

    def look(self) -> None:
        """Look once. Raises httpx.HTTPError and boto's errors."""
        self.jobs = find_placements()
        wanted = {"flow_runs": {"state": {"type": {"any_": UNFINISHED}}}, "limit": 200}
        found = self._prefect.post("/flow_runs/filter", json=wanted).raise_for_status().json()
        self.states = {run["id"]: run["state_type"] for run in found}
        if not self.find_free():
            for job_id in (job_id for job_id, state in self.states.items() if state == "SCHEDULED"):
                self.in_line[job_id].append(time.monotonic())
        self._look_into_store()

    def find_free(self) -> list[str]:
        """Hosts that could take a job."""
        machines = (self._pool.machines[name] for name in WORKERS)
        return [machine.name for machine in machines if not machine.is_away and not self.jobs.get(machine.name)]

    def count_seconds_in_line(self, job_id: str, since: float, until: float) -> float:
        """How long the job waited in this time only because no host was free."""
        seen = [at for at in self.in_line.get(job_id, ()) if since <= at <= until]
        return sum(min(after - before, 3 * LOOK_SECONDS) for before, after in pairwise(seen))

    def close(self) -> None:
        """Stop looking."""
        self._stopped.set()
        self.join()
        self._prefect.close()

    def _look_into_store(self) -> None:
        now = datetime.now(UTC)
        for key in self._list_keys():
            if match := MANIFEST.search(key):
                self.stored[match[1]].setdefault(int(match[2]), now)

    def _list_keys(self) -> Iterator[str]:
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            yield from (entry["Key"] for entry in page.get("Contents", []))


def find_placements() -> dict[str, set[str]]:
    """Ids of the jobs with processes, by host."""
    found: dict[str, set[str]] = defaultdict(set)
    for job_id, process in find_job_processes():
        with suppress(psutil.Error):
            found[process.environ().get(HOST, "")].add(job_id)
    return found


def find_resumes(database_url: str, job_id: str, stored: dict[int, datetime]) -> list[Resume]:
    """Every attempt at a job but the first that came to train, in order.

    Args:
        stored: when each checkpoint was first seen in the store, by step.
    """
    wanted = select(JobEvent.event, JobEvent.data, JobEvent.created_at).where(JobEvent.job_id == UUID(job_id))
    with engine_for(database_url).connect() as connection:
        events = connection.execute(wanted.order_by(JobEvent.id)).all()
    return list(read_resumes(job_id, [tuple(event) for event in events], stored))


def read_resumes(
    job_id: str, events: list[tuple[str, dict[str, Any], datetime]], stored: dict[int, datetime]
) -> Iterator[Resume]:
    """See `find_resumes`. Both the store's list and the job's own word for what it has count."""
    newest = 0
    attempt = 0
    for event, data, at in events:
        if event == "phase" and data["phase"] == "starting":
            attempt += 1
        if event == "stored":
            newest = max(newest, data["step"])
        if event == "begin" and attempt > 1:
            seen = max((step for step, since in stored.items() if since < at), default=0)
            yield Resume(job_id, attempt, data["step"], max(newest, seen))
