"""Every kind of fault, and how each is done to a running service."""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import psutil

from jobs.supervision import Process
from tests.chaos.service import Service
from tests.chaos.watcher import Sight, Watcher

T = TypeVar("T")

TARGET_SECONDS = 120.0  # how long to wait for something to hit
STOPPED_SECONDS = 35.0  # longer than a job may be silent
API_PAUSE_SECONDS = 2.0  # until whoever looks after the API starts it again
POLL_SECONDS = 0.1
NEARLY = 0.8  # of a job's training, so that MLflow is not back when the adapter is registered

# Those that end the process of the job they hit: it is well again once its next attempt has begun.
LETHAL = ("trainer killed", "trainer told to stop", "trainer stopped", "worker killed", "worker told to stop")


class NoTarget(Exception):
    """There was nothing to do the fault to."""


@dataclass
class Fault:
    """One fault; `hit` has the jobs it may have disturbed, with how many attempts at each had begun."""

    kind: str
    at: float
    target: str
    hit: dict[str, int] = field(default_factory=dict)


class Faults:
    """Does faults to a service, one after the other."""

    def __init__(self, service: Service, watcher: Watcher, rng: random.Random, deadline: float) -> None:
        self._service = service
        self._watcher = watcher
        self._rng = rng
        self._deadline = deadline
        self.done: list[Fault] = []

    def do(self, kind: str) -> Fault:
        """Do one and return once it is over, its consequences apart. Raises NoTarget."""
        while True:
            try:
                KINDS[kind](self, kind)
            except psutil.NoSuchProcess:  # it ended by itself a moment before: there will be another one
                self.done.pop()
            else:
                return self.done[-1]

    # -- the kinds

    def signal_part(self, kind: str) -> None:
        """SIGKILL or SIGTERM to one of the stack's parts, which supervisord starts again."""
        name, number = kind.split()[0], _signal_of(kind)
        part = self._wait_for_part(name)
        self._note(kind, f"{part.name}, pid {part.pid}")
        psutil.Process(part.pid).send_signal(number)

    def signal_api(self, kind: str) -> None:
        """SIGKILL or SIGTERM to the API, which is started again after a while."""
        self._note(kind, "api")
        self._service.api.kill(_signal_of(kind))
        time.sleep(API_PAUSE_SECONDS)
        self._service.api.start()

    def signal_trainer(self, kind: str) -> None:
        """A signal to the process of a job."""
        job_id, trainer = self._wait_for_trainer()
        self._note(kind, f"job {job_id}, pid {trainer.pid}", [job_id])
        trainer.send_signal(_signal_of(kind))

    def stop_worker(self, kind: str) -> None:
        """SIGSTOP to a worker for longer than a heartbeat, then SIGCONT."""
        part = self._wait_for_part("worker")
        self._note(kind, f"{part.name}, pid {part.pid}")
        process = psutil.Process(part.pid)
        process.suspend()
        try:
            time.sleep(STOPPED_SECONDS)
        finally:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def restart_database(self, kind: str) -> None:
        """PostgreSQL is shut down as for an update, and started."""
        self._wait_for_part("postgres")
        self._note(kind, "postgres")
        self._service.supervisor.stop("postgres")
        self._service.supervisor.start("postgres")

    def kill_mlflow(self, kind: str) -> None:
        """SIGKILL to MLflow as a job is about to register; it takes some ten seconds to come back."""
        part = self._wait_for_part("mlflow")
        job_id = self._wait(self._find_nearly_done)
        self._note(kind, f"{part.name}, pid {part.pid}", [job_id])
        psutil.Process(part.pid).kill()

    # -- what they need

    def _note(self, kind: str, target: str, jobs: list[str] | None = None) -> None:
        """Put the fault down, the moment before it is done."""
        hit = {job_id: self._attempt_of(job_id) for job_id in jobs or self._find_running()}
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

    def _find_nearly_done(self) -> str | None:
        """A job near the end of its training, or behind it."""
        for job_id in self._service.find_trainers():
            job = self._look(job_id)
            if job and job.status == "running" and (job.step or 0) >= NEARLY * job.total_steps:
                return job_id
        return None

    def _wait(self, find: Callable[[], T | None]) -> T:
        until = min(self._deadline, time.monotonic() + TARGET_SECONDS)
        while time.monotonic() < until:
            if (found := find()) is not None:
                return found
            time.sleep(POLL_SECONDS)
        raise NoTarget(f"nothing to hit within {TARGET_SECONDS:.0f} s")


def _signal_of(kind: str) -> signal.Signals:
    if kind.endswith("killed"):
        return signal.SIGKILL
    return signal.SIGTERM if kind.endswith("told to stop") else signal.SIGSTOP


KINDS: dict[str, Callable[[Faults, str], None]] = {
    "trainer killed": Faults.signal_trainer,
    "worker killed": Faults.signal_part,
    "api killed": Faults.signal_api,
    "watchdog killed": Faults.signal_part,
    "prefect killed": Faults.signal_part,
    "trainer told to stop": Faults.signal_trainer,
    "postgres restarted": Faults.restart_database,
    "mlflow killed": Faults.kill_mlflow,
    "worker told to stop": Faults.signal_part,
    "api told to stop": Faults.signal_api,
    "watchdog told to stop": Faults.signal_part,
    "prefect told to stop": Faults.signal_part,
    "worker stopped": Faults.stop_worker,
    "trainer stopped": Faults.signal_trainer,
}


def draw_kinds(count: int, rng: random.Random) -> list[str]:
    """Kinds in random order: the first ones of `KINDS` if there are fewer than all, else all of them in turn."""
    kinds: list[str] = []
    while len(kinds) < count:
        some = [*KINDS][: count - len(kinds)]
        kinds += rng.sample(some, len(some))
    return kinds
