"""`python -m tests.bench.submissions`: how many jobs a second can be submitted. The last line is one JSON object.

Posts 1,000 jobs to an API and a stack of its own, 40 at a time, with the work pool paused. The baseline of the same run
is Prefect's own API, asked to create as many runs in the same way, half of them before and half after. Also counts what
must not be: jobs lost or made twice, and positions that differ from the queue.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from jobs.settings import Settings
from tests.bench.load import quantile, timed
from tests.live_service import pause_jobs, running_service

BODY = {"model_name": "nobody/nothing", "dataset_version": "v1.0", "max_steps": 1}
CONFIG = {"base_model": "nobody/nothing", "dataset_name": "handbook@v1.0", "dataset_format": "auto", "max_steps": 1}


def main() -> None:
    """Measure it and print the figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=1000, help="jobs to submit")
    arguments.add_argument("--at-once", type=int, default=40, help="requests under way at any time")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuneyard-bench-") as folder, running_service(Path(folder)) as (up, url):
        print(json.dumps(asyncio.run(measure(up, url, options.jobs, options.at_once))))


async def measure(settings: Settings, url: str, jobs: int, at_once: int) -> dict[str, float]:
    """All figures; rates per second, times in milliseconds."""
    pause_jobs(settings)
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with (
        httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as api,
        httpx.AsyncClient(base_url=str(settings.prefect_api_url), timeout=120, limits=limits) as prefect,
    ):
        deployment = (await prefect.get("/deployments/name/finetune/sft")).raise_for_status().json()
        later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}  # not in the queue
        run = {"parameters": {"config": CONFIG}, "enforce_parameter_schema": False, "state": later}
        (await api.post("/train", json=BODY)).raise_for_status()  # opens connections and caches

        async def create() -> httpx.Response:
            return await prefect.post(f"/deployments/{deployment['id']}/create_flow_run", json=run)

        async def post() -> httpx.Response:
            return await api.post("/train", json=BODY)

        before, _ = await rate(create, jobs // 2, at_once)
        ours, answers = await rate(post, jobs, at_once)
        after, _ = await rate(create, jobs // 2, at_once)
        queue = (await api.get("/queue")).raise_for_status().json()["queued_jobs"][1:]
    accepted = [answer.json() for _, answer in answers if answer.is_success]
    in_order = [job["job_id"] for job in sorted(accepted, key=read_position)]
    alone = 2 / (1 / before + 1 / after)
    return {
        "submissions": jobs,
        "submissions_per_second": round(ours, 1),
        "prefect_creates_per_second": round(alone, 1),
        "ratio": round(ours / alone, 2),
        "p50_ms": quantile([seconds for seconds, _ in answers], 50),
        "p99_ms": quantile([seconds for seconds, _ in answers], 99),
        "lost": len({*in_order} - {*queue}) + jobs - len(accepted),
        "doubled": len(queue) - len({*in_order}),
        "out_of_order": sum(one != other for one, other in zip(in_order, queue, strict=False)),
    }


async def rate(
    request: Callable[[], Awaitable[httpx.Response]], times: int, at_once: int
) -> tuple[float, list[tuple[float, httpx.Response]]]:
    """Requests per second with so many under way, and the seconds and answer of each."""
    gate = asyncio.Semaphore(at_once)

    async def one() -> tuple[float, httpx.Response]:
        async with gate:
            return await timed(request)

    began = time.perf_counter()
    answers = await asyncio.gather(*(one() for _ in range(times)))
    return times / (time.perf_counter() - began), answers


def read_position(answer: dict[str, Any]) -> int:
    """The position in the answer to a submission."""
    return int(answer["message"].rsplit(" ", 1)[1])


if __name__ == "__main__":
    main()
