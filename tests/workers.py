"""The workers of a stack, stopped where they stand: nobody has paused anything, and nothing starts."""

import threading
import time

import httpx
import psutil

from jobs.settings import Settings
from jobs.stack import local as local_stack

HEARTBEAT_SECONDS = 20.0  # Prefect takes a worker for offline 90 s after its last one


class StackWorkers:
    """The workers of the stack with these settings."""

    def __init__(self, stack: Settings) -> None:
        parts = [part for part in local_stack.status(stack) if part.name.startswith("worker-")]
        self.names = [part.name for part in parts]
        self._processes = [psutil.Process(part.pid) for part in parts]
        self._pool_url = f"{stack.prefect_api_url}/work_pools/{stack.work_pool}/workers"
        self._resumed = threading.Event()

    def pause(self, is_online: bool = True) -> None:
        """No worker takes a job from now on. Prefect takes them for online as before, or for offline."""
        for process in self._processes:
            process.suspend()
        if is_online:
            self._resumed = threading.Event()  # of this pause alone
            threading.Thread(target=self._send_heartbeats, args=[self._resumed], daemon=True).start()
        else:
            time.sleep(0.5)  # a heartbeat may be under way
            for name in self.names:
                self.forget(name)

    def resume(self) -> None:
        """Workers take jobs again."""
        self._resumed.set()
        for name, process in zip(self.names, self._processes, strict=True):
            process.resume()
            self.send_heartbeat(name)

    def send_heartbeat(self, name: str) -> None:
        """Tell Prefect that a worker of this name is online."""
        httpx.post(f"{self._pool_url}/heartbeat", json={"name": name}, timeout=30).raise_for_status()

    def forget(self, name: str) -> None:
        """Have Prefect forget this worker."""
        httpx.delete(f"{self._pool_url}/{name}", timeout=30).raise_for_status()

    def _send_heartbeats(self, resumed: threading.Event) -> None:
        while not resumed.wait(HEARTBEAT_SECONDS):
            for name in self.names:
                self.send_heartbeat(name)
