"""`make bench`: how the REST API bears load, on a stack and a history of its own. The last line is one JSON object.

Posts 12 jobs a second for 30 seconds with the work pool paused, then 200 at once; fills the history up to 5,000 jobs
and reads it. Every figure stands beside a baseline of the same run: Prefect's own API asked the same thing.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from jobs.settings import Settings
from tests.live_service import pause_jobs, running_service

BODY = {"model_name": "nobody/nothing", "dataset_version": "v1.0", "max_steps": 1}
FILL_AT_ONCE = 16


def main() -> None:
    """Run all of it and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rate", type=float, default=12, help="posts a second in the steady part")
    arguments.add_argument("--seconds", type=float, default=30, help="length of the steady part")
    arguments.add_argument("--burst", type=int, default=200, help="posts at once after it")
    arguments.add_argument("--history", type=int, default=5000, help="jobs in the history when it is read")
    arguments.add_argument("--reads", type=int, default=300, help="reads of each kind")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuneyard-bench-") as folder, running_service(Path(folder)) as (up, url):
        figures = asyncio.run(measure(options, up, url))
    show(figures)
    print(json.dumps(figures))


async def measure(options: argparse.Namespace, settings: Settings, url: str) -> dict[str, float]:
    """All figures; times in milliseconds."""
    limits = httpx.Limits(max_connections=options.burst, max_keepalive_connections=options.burst)
    prefect_url = str(settings.prefect_api_url)
    async with (
        httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as api,
        httpx.AsyncClient(base_url=prefect_url, timeout=120, limits=limits) as prefect,
    ):
        pause_jobs(settings)
        deployment = (await prefect.get("/deployments/name/finetune/sft")).raise_for_status().json()
        (await api.post("/train", json=BODY)).raise_for_status()  # opens connections and caches

        async def create_in_prefect() -> httpx.Response:
            parameters = {"config": {"base_model": "x", "dataset_name": "y", "dataset_format": "auto"}}
            return await prefect.post(
                f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters}
            )

        alone = await repeat(create_in_prefect, 60)
        posts = await post_steadily(api, options.rate, options.seconds)
        began = time.perf_counter()
        burst = await asyncio.gather(*(timed(lambda: api.post("/train", json=BODY)) for _ in range(options.burst)))
        burst_seconds = time.perf_counter() - began
        answers = [answer for _, answer in [*posts, *burst]]
        ids = [answer.json()["job_id"] for answer in answers if answer.status_code == 200]
        listed = [job["job_id"] for job in (await api.get("/train")).json()]
        await fill_history(prefect, deployment, options.history - len(listed))
        one = await repeat(lambda: api.get(f"/train/{ids[0]}"), options.reads)
        page = await repeat(lambda: api.get("/train", params={"limit": 50}), options.reads)
        one_in_prefect = await repeat(lambda: prefect.get(f"/flow_runs/{ids[0]}"), options.reads)
    return {
        "posts": len(answers),
        "accepted": len(ids),
        "errors_5xx": sum(answer.status_code >= 500 for answer in answers),
        "lost": len(set(ids) - set(listed)),
        "doubled": len(ids) - len(set(ids)),
        "prefect_create_p50_ms": quantile(alone, 50),
        "steady_p50_ms": quantile([seconds for seconds, _ in posts], 50),
        "steady_p99_ms": quantile([seconds for seconds, _ in posts], 99),
        "burst_per_second": round(options.burst / burst_seconds, 1),
        "burst_p99_ms": quantile([seconds for seconds, _ in burst], 99),
        "history": options.history,
        "get_one_p50_ms": quantile(one, 50),
        "get_one_p99_ms": quantile(one, 99),
        "prefect_get_one_p99_ms": quantile(one_in_prefect, 99),
        "first_page_p50_ms": quantile(page, 50),
        "first_page_p99_ms": quantile(page, 99),
    }


async def post_steadily(api: httpx.AsyncClient, rate: float, seconds: float) -> list[tuple[float, httpx.Response]]:
    """Post at a fixed rate, whatever the answers take; seconds and answer of each."""
    began = time.perf_counter()
    running = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        running.append(asyncio.create_task(timed(lambda: api.post("/train", json=BODY))))
    return await asyncio.gather(*running)


async def fill_history(prefect: httpx.AsyncClient, deployment: dict[str, Any], runs: int) -> None:
    """Add jobs that have ended, through Prefect's API."""
    config = {"base_model": "x", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
    body = {
        "flow_id": deployment["flow_id"],
        "deployment_id": deployment["id"],
        "parameters": {"config": config},
        "state": {"type": "CANCELLED", "name": "Cancelled"},  # a completed one has a result
    }
    gate = asyncio.Semaphore(FILL_AT_ONCE)

    async def add() -> None:
        async with gate:
            (await prefect.post("/flow_runs/", json=body)).raise_for_status()

    await asyncio.gather(*(add() for _ in range(max(0, runs))))


async def repeat(request: Callable[[], Awaitable[httpx.Response]], times: int) -> list[float]:
    """Seconds of each of so many requests, one after the other."""
    taken = []
    for _ in range(times):
        seconds, answer = await timed(request)
        answer.raise_for_status()
        taken.append(seconds)
    return taken


async def timed(request: Callable[[], Awaitable[httpx.Response]]) -> tuple[float, httpx.Response]:
    """Seconds and answer of a request."""
    began = time.perf_counter()
    answer = await request()
    return time.perf_counter() - began, answer


def quantile(seconds: list[float], percent: int) -> float:
    """A percentile, in milliseconds."""
    return round(1000 * statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1], 1)


def show(figures: dict[str, float]) -> None:
    """Print the figures as a table."""
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:g}")
    Console().print(table)


if __name__ == "__main__":
    main()
