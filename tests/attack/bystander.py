"""A client that wants nothing but to be answered, all the while others attack."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.patience import PATIENCE

PATHS = ("/health", "/queue", "/train?limit=5", "/train/00000000-0000-4000-8000-000000000000")
PAUSE_SECONDS = 0.2
TIMEOUT_SECONDS = 10.0 * PATIENCE


class Bystander:
    """Asks in turn for what every client asks for; each request on a connection of its own.

    `slowest_ms` is the slowest answer of all, `failures` what got none or a wrong one.
    """

    def __init__(self, url: str, key: str) -> None:
        self.slowest_ms = 0.0
        self.slowest = ""
        self.answered = 0
        self.failures: list[str] = []
        self._url, self._headers = url, {"Authorization": f"Bearer {key}"}
        self._is_over = threading.Event()
        self._at_rest = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="bystander")

    @contextmanager
    def asking(self) -> Iterator["Bystander"]:
        """Ask as long as the block lasts."""
        self._thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            self._thread.join()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Ask for nothing within the block: the service is stopped on purpose."""
        with self._at_rest:
            yield

    def _run(self) -> None:
        number = 0
        while not self._is_over.wait(PAUSE_SECONDS):
            with self._at_rest:
                self._ask(PATHS[number % len(PATHS)])
            number += 1

    def _ask(self, path: str) -> None:
        began = time.monotonic()
        try:
            status = httpx.get(f"{self._url}{path}", headers=self._headers, timeout=TIMEOUT_SECONDS).status_code
        except httpx.TransportError as error:
            self.failures.append(f"{path}: {type(error).__name__}")
            status = None
        took = 1000 * (time.monotonic() - began)
        if took > self.slowest_ms:
            self.slowest_ms, self.slowest = took, path
        if status is not None:
            self.answered += 1
            if status not in (200, 404):
                self.failures.append(f"{path}: {status}")
