"""A worker of Prefect's as users may start it by mistake: without a limit."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import select

from jobs.engine.pool import POOL_TTL_SECONDS
from jobs.settings import PROJECT_ROOT, Settings
from jobs.stack.parts import stack_environment
from jobs.stack.readiness import check_parts
from jobs.storage.tables import JobAttempt, engine_for
from tests.conftest import wait_until
from tests.live_service import wait_until_idle
from tests.workers import StackWorkers

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture
def free_worker(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The only worker online, without a limit, of a pool without one."""
    pool_url = f"{stack.prefect_api_url}/work_pools/{stack.work_pool}"
    before = httpx.get(pool_url, timeout=30).raise_for_status().json()["concurrency_limit"]
    wait_until_idle(stack)
    workers = StackWorkers(stack)
    workers.pause(is_online=False)
    httpx.patch(pool_url, json={"concurrency_limit": None}, timeout=30).raise_for_status()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--name", "free"]
    environment = os.environ | stack_environment(stack) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    with (tmp_path_factory.mktemp("worker") / "log").open("w") as log:
        worker = subprocess.Popen([*command, "--pool", stack.work_pool], env=environment, stdout=log, stderr=log)
        try:
            yield
        finally:
            worker.kill()
            worker.wait()
            httpx.patch(pool_url, json={"concurrency_limit": before}, timeout=30).raise_for_status()
            workers.forget("free")
            workers.resume()


def test_it_trains_one_job_at_a_time_and_is_reported(free_worker, stack, api, model):
    body = {"model_name": model, "dataset_version": "v1.1", "template": "chatml", "max_samples": 8, "max_steps": 3}
    time.sleep(POOL_TTL_SECONDS + 0.5)
    ids = [api.post("/train", json=body).raise_for_status().json()["job_id"] for _ in range(3)]
    engine = engine_for(str(stack.database_url))
    at_work: list[int] = []

    def have_ended() -> bool:
        with engine.connect() as connection:
            wanted = JobAttempt.job_id.in_(ids) & JobAttempt.token.is_not(None)
            at_work.append(len(connection.execute(select(JobAttempt.job_id).where(wanted)).all()))
        return all(api.get(f"/train/{job_id}").json()["status"] == "completed" for job_id in ids)

    wait_until(lambda: check_parts(stack)["worker"].is_warning, 120)
    assert "--limit 1" in check_parts(stack)["worker"].detail
    wait_until(have_ended, 300)
    assert max(at_work) == 1
