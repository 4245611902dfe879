"""An API server in a process of its own, started as documented, that tests may kill and start again."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from jobs.settings import PROJECT_ROOT
from tests.conftest import free_port

UP_SECONDS = 150


class ApiProcess:
    """uvicorn in training_cluster/api. `client` asks it; its address stays the same from start to start.

    Args:
        command: one that starts another, in front of uvicorn's.
    """

    def __init__(self, environment: Mapping[str, str], log_path: Path, command: Sequence[str] = ()) -> None:
        self._command = command
        self._environment = dict(environment)
        self._log_path = log_path
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=60)

    def start(self) -> "ApiProcess":
        """Start the process and wait until it answers."""
        command = [*self._command, sys.executable, "-m", "uvicorn", "train_server:app", "--host", "127.0.0.1", "--port"]
        with self._log_path.open("a") as log:
            self._process = subprocess.Popen(
                [*command, str(self._port)],
                cwd=PROJECT_ROOT / "training_cluster" / "api",
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + UP_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                assert self.client.get("/").json()["name"] == "Tuneyard"
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return self
        raise AssertionError(self._log_path.read_text())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL, so that it has no chance to put anything in order, or another signal that ends it."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait()

    def close(self) -> None:
        """Leave neither the process nor connections behind."""
        self.client.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
