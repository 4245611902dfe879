"""Streams of events and logs: more than anybody needs, beside clients that only ask."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from tests.attack.case import Finding, Harm, Target, case
from tests.attack.connections import Stream
from tests.live_service import pause_jobs

PATIENCE_SECONDS = 200e-3  # the 99th percentile of other requests


@dataclass(frozen=True)
class Beside:
    """What became of many streams, and of requests beside them."""

    asked: int  # streams that were asked for
    open: int  # of these, answered with 200
    refused: int  # of these, answered with 429 or 503
    requests: int  # of the client beside them
    failed: int  # of these, without a 200
    p99_ms: float
    max_ms: float


def open_streams(
    base_url: str, path: str, streams: int = 1000, seconds: float = 10, key: str | None = None, beside: str = "/health"
) -> Beside:
    """Open streams of `path`, such as `/train/ID/events`, that are never read, and ask for `beside` in turn."""
    return asyncio.run(_open_streams(base_url, path, streams, seconds, key, beside))


@case
def streams_starve_nobody(target: Target) -> Iterator[Finding]:
    """1,000 streams of one job, of a key that may read: most are refused, and others are answered in time."""
    body = {"model_name": "nobody/nothing", "dataset_version": "v1.0"}
    pause_jobs(target.service.settings)
    try:
        with target.client() as client:
            job = client.post("/train", json=body).raise_for_status().json()["job_id"]
            for resource in (f"/train/{job}/events", f"/train/{job}/logs?follow=true"):
                found = open_streams(target.url, resource, seconds=8, key=target.keys["read"])
                if found.failed or found.p99_ms > 1000 * PATIENCE_SECONDS:
                    yield Finding(Harm.STARVED, f"beside streams of {resource}: {found}")
                if found.open + found.refused < found.asked:
                    yield Finding(Harm.UNSETTLED, f"streams of {resource} without an answer: {found}")
            client.delete(f"/train/{job}").raise_for_status()
    finally:
        pause_jobs(target.service.settings, is_paused=False)


async def _open_streams(base_url: str, path: str, streams: int, seconds: float, key: str | None, beside: str) -> Beside:
    head = {"Host": "localhost", **({"Authorization": f"Bearer {key}"} if key else {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    request = f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()
    async with _closing() as made:
        gate = asyncio.Semaphore(20)
        statuses = await asyncio.gather(*(_ask(base_url, request, gate, made) for _ in range(streams)))
        times, failed = await _time_requests(base_url, beside, seconds, key)
    times.sort()
    return Beside(
        streams,
        statuses.count(200),
        sum(status in (429, 503) for status in statuses),
        len(times),
        failed,
        round(1000 * times[int(0.99 * (len(times) - 1))], 1),
        round(1000 * times[-1], 1),
    )


@contextlib.asynccontextmanager
async def _closing() -> AsyncIterator[list[Stream]]:
    made: list[Stream] = []
    try:
        yield made
    finally:
        for _, writer in made:
            writer.transport.abort()
        await asyncio.sleep(0)


async def _ask(base_url: str, request: bytes, gate: asyncio.Semaphore, made: list[Stream]) -> int:
    """The status of the answer; 0 when there is none. The connection is added to those that were made."""
    parts = urlsplit(base_url)
    async with gate:
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
            made.append((reader, writer))
            writer.write(request)
            line = await asyncio.wait_for(reader.readline(), 30)
            return int(line.split()[1]) if line else 0
        except (OSError, TimeoutError):
            return 0


async def _time_requests(base_url: str, path: str, seconds: float, key: str | None) -> tuple[list[float], int]:
    """Seconds of requests one after the other, over one connection."""
    taken, failed, end = [], 0, time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=30, trust_env=False) as client:
        while time.monotonic() < end or not taken:
            began = time.monotonic()
            try:
                failed += (await client.get(path)).status_code != httpx.codes.OK
            except httpx.HTTPError:
                failed += 1
            taken.append(time.monotonic() - began)
            await asyncio.sleep(0.01)
    return taken, failed
