"""The line of jobs as tests handle it: empty it, or ask many things of it at once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import httpx

from tests.conftest import wait_until

T = TypeVar("T")

NOBODY = {"is_training_running": False, "queue_length": 0, "queued_jobs": []}


def clear_line(api: httpx.Client) -> None:
    """Cancel every job that waits, until there is none."""
    for job in api.get("/api/sft/jobs", params={"status": "pending"}).json()["jobs"]:
        api.post(f"/api/sft/jobs/{job['job_id']}/stop")
    wait_until(lambda: api.get("/queue").json() == NOBODY, 120)


def ask_together(count: int, request: Callable[[int], T]) -> list[T]:
    """Call `request(index)` from that many threads at the same moment; the answers."""
    barrier = threading.Barrier(count)

    def run(index: int) -> T:
        barrier.wait()
        return request(index)

    with ThreadPoolExecutor(count) as pool:
        return [*pool.map(run, range(count))]
