"""The service started by the documented command, with workers that take no job, so that no model is looked for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs.settings import PROJECT_ROOT, Settings
from tests.conftest import free_port
from tests.contract.documents import find_block
from tests.live_service import wait_until_idle
from tests.workers import StackWorkers

ENDED = ("completed", "failed", "cancelled")
DOCUMENTED_ADDRESS = ("--host 0.0.0.0 --port 23478", "--host 127.0.0.1 --port {port}")


@pytest.fixture(scope="session")
def environment(stack: Settings) -> dict[str, str]:
    """What a user has in the environment to share the tests' stack."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"TUNEYARD_HOME": str(stack.home), "PATH": programs}


@pytest.fixture(scope="module")
def workers(stack: Settings) -> Iterator[StackWorkers]:
    """Jobs are made and wait until it is over."""
    wait_until_idle(stack)
    workers = StackWorkers(stack)
    workers.pause()
    yield workers
    workers.resume()


@pytest.fixture(scope="module")
def base_url(
    workers: StackWorkers, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where the service is. Only the address of the documented command is another one."""
    port = free_port()
    command = find_block("training-api.md", "bash", "Start API service locally")
    assert DOCUMENTED_ADDRESS[0] in command
    command = command.replace(DOCUMENTED_ADDRESS[0], DOCUMENTED_ADDRESS[1].format(port=port))
    log_path: Path = tmp_path_factory.mktemp("contract") / "api.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            ["bash", "-ec", command],
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # --reload has a child, which is to end as well
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, log_path)
        yield url
        _cancel_all(url)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.fixture
def client(base_url: str) -> Iterator[httpx.Client]:
    """A client of an idle service."""
    with httpx.Client(base_url=base_url, timeout=60) as client:
        _cancel_all(base_url)
        yield client


def _wait_until_up(url: str, log_path: Path) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        try:
            httpx.get(url, timeout=60).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log_path.read_text())


def _cancel_all(url: str) -> None:
    for job in httpx.get(f"{url}/train", timeout=60).json():
        if job["status"] not in ENDED:
            httpx.delete(f"{url}/train/{job['job_id']}", timeout=60).raise_for_status()
