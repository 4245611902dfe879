"""What every kind of fault needs: something to hit, and a note of what was hit."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import psutil

from jobs.stack.process_manager import Process
from tests.chaos.additions import Adder
from tests.chaos.pacing import wait_for_target
from tests.chaos.service import Service
from tests.chaos.watcher import Sight, Watcher

T = TypeVar("T")

TARGET_SECONDS = 120.0  # how long to wait for something to hit


@dataclass
class Fault:
    """One fault; `hit` has the jobs it may have disturbed, with how many attempts at each had begun."""

    kind: str
    at: float
    target: str
    hit: dict[str, int] = field(default_factory=dict)


class Aim:
    """Finds targets in a service; `done` has the faults, `erased` the tags of versions whose model somebody deleted."""

    def __init__(
        self, service: Service, watcher: Watcher, rng: random.Random, deadline: float, adder: Adder | None = None
    ) -> None:
        self._service = service
        self._watcher = watcher
        self._rng = rng
        self._deadline = deadline
        self._adder = adder
        self._absences: list[tuple[float, float]] = []
        self.done: list[Fault] = []
        self.erased: list[dict[str, str]] = []

    def was_away(self, began: float, ended: float) -> bool:
        """Whether the API was stopped at any time between two moments."""
        return any(gone <= ended and began <= back for gone, back in self._absences)

    def _note(self, kind: str, target: str, jobs: list[str] | None = None) -> None:
        """Put the fault down, the moment before it is done."""
        hit = {job_id: self._attempt_of(job_id) for job_id in (self._find_running() if jobs is None else jobs)}
        self.done.append(Fault(kind, time.monotonic(), target, hit))

    def _find_running(self) -> list[str]:
        """Jobs that have a process, or are shown as if they had one."""
        with_process = self._service.find_trainers()
        shown = [job_id for job_id, sights in list(self._watcher.sights.items()) if sights[-1].status == "running"]
        return [*with_process, *(job_id for job_id in shown if job_id not in with_process)]

    def _attempt_of(self, job_id: str) -> int:
        sight = self._look(job_id) or self._watcher.last(job_id)
        return (sight.attempt or 0) if sight else 0

    def _look(self, job_id: str) -> Sight | None:
        try:
            answer = self._service.api.client.get(f"/train/{job_id}", timeout=5)
            return Sight.of(time.monotonic(), answer.raise_for_status().json())
        except httpx.HTTPError:  # the API is away
            return None

    def _wait_for_part(self, prefix: str) -> Process:
        def find() -> Process | None:
            parts = self._service.supervisor.processes().values()
            alive = [part for part in parts if part.name.startswith(prefix) and part.pid is not None]
            return self._rng.choice(alive) if alive else None

        return self._wait(find)

    def _wait_for_trainer(self) -> tuple[str, psutil.Process]:
        def find() -> tuple[str, psutil.Process] | None:
            trainers = sorted(self._service.find_trainers().items())
            return self._rng.choice(trainers) if trainers else None

        return self._wait(find)

    def _wait_for_own(self, module: str) -> psutil.Process:
        def find() -> psutil.Process | None:
            found = self._service.find_own(module)
            return self._rng.choice(found) if found else None

        return self._wait(find)

    def _wait(self, find: Callable[[], T | None]) -> T:
        return wait_for_target(find, TARGET_SECONDS, self._deadline)

    def _pick(self, suits: Callable[[Sight], bool]) -> str | None:
        lasts = {job_id: self._watcher.last(job_id) for job_id in list(self._watcher.sights)}
        found = [job_id for job_id, sight in lasts.items() if sight and suits(sight)]
        return self._rng.choice(found) if found else None
