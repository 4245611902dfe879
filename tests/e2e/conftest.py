"""The service as users meet it: the stack, the API in a process of its own, a small model."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate

from jobs.engine.pool import POOL_TTL_SECONDS
from jobs.settings import Settings
from tests.conftest import wait_until
from tests.e2e.api_process import ApiProcess
from tests.e2e.line import NOBODY, clear_line
from tests.receiver import Receiver
from tests.tiny_models import save_tiny_llama
from tuneyard_client import AsyncTuneyard
from tuneyard_wire.jobs import TrainJob
from tuneyard_wire.records import JobEvent

ENDED = ("completed", "failed", "cancelled")
MODEL = "tiny/llama"


@pytest.fixture(scope="session")
def model(stack: Settings) -> str:
    """The id of a tiny model in the stack's model root."""
    save_tiny_llama(stack.model_root / MODEL)
    return MODEL


@pytest.fixture(scope="session")
def environment(stack: Settings) -> dict[str, str]:
    """What a user has in the environment to share the tests' stack."""
    return os.environ | {"TUNEYARD_HOME": str(stack.home)}


@pytest.fixture(scope="session")
def make_api(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ApiProcess]]:
    """Makes API servers, with further variables in their environment, that are stopped at the end."""
    lean = environment | {"TUNEYARD_KEEP_PLANNER": "false"}  # 500 MB each
    with ExitStack() as made:

        def make(**further: str) -> ApiProcess:
            process = ApiProcess(lean | further, tmp_path_factory.mktemp("api") / "api.log")
            made.callback(process.close)
            return process

        yield make


@pytest.fixture(scope="session")
def api(make_api: Callable[..., ApiProcess]) -> httpx.Client:
    """A client of the API that the tests share."""
    return make_api().start().client


@pytest.fixture(scope="session")
def prefect(stack: Settings) -> Iterator[SyncPrefectClient]:
    """A client of Prefect's API, as its UI is one."""
    with SyncPrefectClient(str(stack.prefect_api_url)) as client:
        yield client


@pytest.fixture(scope="module")
def paused(prefect: SyncPrefectClient, stack: Settings, api: httpx.Client) -> Iterator[None]:
    """The work pool is paused: nothing starts; what is in line at the end is cancelled."""
    wait_until(lambda: api.get("/queue").json() == NOBODY, 120)
    prefect.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=True))
    time.sleep(POOL_TTL_SECONDS + 0.5)
    yield
    clear_line(api)
    prefect.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=False))
    time.sleep(POOL_TTL_SECONDS + 0.5)


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """Where webhooks go."""
    receiver = Receiver(200)
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def wait_for(api: httpx.Client) -> Callable[..., dict[str, Any]]:
    """Waits until a job has ended, or until a condition on its status holds; returns the status."""

    def wait(
        job_id: str, until: Callable[[dict[str, Any]], bool] | None = None, seconds: float = 240
    ) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        job: dict[str, Any] = {}
        while time.monotonic() < deadline:
            job = api.get(f"/train/{job_id}").json()
            if until(job) if until else job["status"] in ENDED:
                return job
            time.sleep(0.25)
        raise AssertionError(f"job {job_id} did not get there in {seconds} s: {job}")

    return wait


class TinyJob(NamedTuple):
    """A job of two steps, as a client saw it that made it and followed it to its end."""

    job: TrainJob
    changes: list[TrainJob]
    events: list[JobEvent]


@pytest.fixture(scope="session")
def tiny_job(api: httpx.Client, model: str) -> TinyJob:
    """One completed job that tests may look at."""

    async def run() -> TinyJob:
        changes: list[TrainJob] = []
        async with AsyncTuneyard(str(api.base_url)) as client:
            made = await client.train(
                model_name=model,
                dataset_version="v1.1",
                template="chatml",
                lora_name="tiny",
                max_samples=8,
                max_steps=2,
                save_steps=1,
                metadata={"made.by": "asyncio"},
            )
            waiting = asyncio.create_task(client.wait(made.job_id, timeout_seconds=240, on_progress=changes.append))
            events = [event async for event in client.events(made.job_id)]
            return TinyJob(await waiting, changes, events)

    return asyncio.run(run())
