"""A stack and an API of its own, for what is measured or fuzzed apart from the tests."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from api.main import create_app
from jobs.settings import PROJECT_ROOT, Settings
from jobs.stack.local import ensure_up
from tests.conftest import free_port, wait_until
from tests.stack_guard import stopping_stack


@contextmanager
def running_service(home: Path) -> Iterator[tuple[Settings, str]]:
    """Settings of the stack and URL of the API; both are stopped at the end."""
    settings = Settings(home=home / "state", prefect_port=free_port(), mlflow_port=free_port(), api_port=free_port())
    with stopping_stack(settings):
        up = ensure_up(settings)
        environment = os.environ | {"TUNEYARD_HOME": str(settings.home)}
        command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(settings.api_port)]
        with (home / "api.log").open("w") as log:
            api = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{settings.api_port}"
            wait_until_up(url)
            yield up, url
        finally:
            api.terminate()
            api.wait()


@contextmanager
def serving_api(settings: Settings) -> Iterator[str]:
    """URL of an API over a stack that runs, in a thread of this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 90)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until_up(url: str, seconds: float = 150) -> None:
    """Wait until the API answers. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"{url} did not answer within {seconds} s")


def wait_until_idle(settings: Settings, seconds: float = 120) -> None:
    """Until no run of the work pool is at work or about to start: those of other tests have left it."""
    wanted = {
        "work_pools": {"name": {"any_": [settings.work_pool]}},
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}},
    }
    with httpx.Client(base_url=str(settings.prefect_api_url), timeout=30) as prefect:
        wait_until(lambda: prefect.post("/flow_runs/filter", json=wanted).raise_for_status().json() == [], seconds)


def pause_jobs(settings: Settings, is_paused: bool = True) -> None:
    """Let jobs wait, or go on: a paused work pool gives its workers nothing."""
    url = f"{settings.prefect_api_url}/work_pools/{settings.work_pool}"
    httpx.patch(url, json={"is_paused": is_paused}, timeout=30).raise_for_status()
