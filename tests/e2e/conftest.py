"""The service as users meet it: the stack, the API in a process of its own, a small model."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.settings import PROJECT_ROOT, Settings
from tests.conftest import free_port
from tests.receiver import Receiver
from tests.tiny_models import save_tiny_llama

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
def api(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the API, started as documented: uvicorn in training_cluster/api."""
    port = free_port()
    log_path: Path = tmp_path_factory.mktemp("api") / "api.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "train_server:app", "--host", "127.0.0.1", "--port", str(port)],
            cwd=PROJECT_ROOT / "training_cluster" / "api",
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _wait_until_up(client, log_path)
            yield client
    finally:
        process.terminate()
        process.wait()


def _wait_until_up(client: httpx.Client, log_path: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert client.get("/").json()["name"] == "Tuneyard"
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log_path.read_text())


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
        job_id: str, until: Callable[[dict[str, Any]], bool] | None = None, seconds: float = 120
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
