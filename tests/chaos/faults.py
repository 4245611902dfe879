"""Every kind of fault, and how each is done to a running service."""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import psutil

from jobs.supervision import Process
from tests.chaos.service import Service
from tests.chaos.watcher import Sight, Watcher

T = TypeVar("T")

TARGET_SECONDS = 120.0  # how long to wait for something to hit
STOPPED_SECONDS = 35.0  # longer than a job may be silent
API_PAUSE_SECONDS = 2.0  # until whoever looks after the API starts it again
PAUSED_SECONDS = 12.0
POLL_SECONDS = 0.1
NEARLY = 0.8  # of a job's training, so that MLflow is not back when the adapter is registered

BY_HAND = ("run set by hand", "run deleted")  # a job they hit may have ended by that
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

    # -- other people's hands, in Prefect's and MLflow's pages

    def retry_run(self, kind: str) -> None:
        """*Retry* on a job that has ended."""
        job_id = self._wait(lambda: self._pick(lambda sight: sight.has_ended))
        self._note(kind, f"job {job_id}", [job_id])
        self._set_state(job_id, "SCHEDULED", "AwaitingRetry")

    def set_state(self, kind: str) -> None:
        """A job at work is set to an end that it has not come to."""
        job_id, _ = self._wait_for_trainer()
        state = self._rng.choice(["COMPLETED", "FAILED", "CANCELLED"])
        self._note(kind, f"job {job_id}, {state}", [job_id])
        self._set_state(job_id, state, state.title())

    def pause_run(self, kind: str) -> None:
        """A job at work is paused, and resumed after a while."""
        job_id, _ = self._wait_for_trainer()
        self._note(kind, f"job {job_id}", [job_id])
        self._set_state(job_id, "PAUSED", "Paused")
        time.sleep(PAUSED_SECONDS)
        if (sight := self._look(job_id)) is None or not sight.has_ended:
            self._set_state(job_id, "RUNNING", "Running")

    def delete_run(self, kind: str) -> None:
        """The run of a job is deleted, at work or waiting."""
        job_id = self._wait(lambda: self._pick(lambda sight: not sight.has_ended))
        self._note(kind, f"job {job_id}", [job_id])
        self._watcher.unlisted.add(job_id)
        self._service.prefect.delete(f"/flow_runs/{job_id}")

    def delete_deployment(self, kind: str) -> None:
        """The deployment is deleted, and with it the runs of all jobs that wait."""
        found = self._wait(self._find_deployment)
        self._note(kind, "finetune/sft")
        self._service.prefect.delete(f"/deployments/{found}")

    def pause_pool(self, kind: str) -> None:
        """The work pool is paused for a while, or gets a concurrency limit of 0."""
        path = f"/work_pools/{self._service.settings.work_pool}"
        pool = self._wait(lambda: self._ask_prefect(path))
        self._note(kind, "the work pool")
        change = {"is_paused": True} if kind.endswith("paused") else {"concurrency_limit": 0}
        self._insist_on_prefect("PATCH", path, change)
        time.sleep(PAUSED_SECONDS)
        self._insist_on_prefect("PATCH", path, {name: pool[name] for name in change})

    def delete_experiment(self, kind: str) -> None:
        """MLflow's experiment is deleted, with all runs in it."""
        self._wait_for_part("mlflow")
        found = self._wait(self._find_experiment)
        self._note(kind, "the experiment")
        with suppress(httpx.HTTPError):
            address = f"{self._service.settings.mlflow_tracking_uri}/api/2.0/mlflow/experiments/delete"
            httpx.post(address, json={"experiment_id": found}, timeout=30)

    def _find_experiment(self) -> str | None:
        address = f"{self._service.settings.mlflow_tracking_uri}/api/2.0/mlflow/experiments/get-by-name"
        try:
            answer = httpx.get(address, params={"experiment_name": "tuneyard"}, timeout=30)
        except httpx.HTTPError:
            return None
        return str(answer.json()["experiment"]["experiment_id"]) if answer.is_success else None

    def _find_deployment(self) -> str | None:
        found = self._ask_prefect("/deployments/name/finetune/sft")
        return str(found["id"]) if found else None

    def _ask_prefect(self, path: str) -> dict[str, Any] | None:
        try:
            answer = self._service.prefect.get(path)
        except httpx.HTTPError:
            return None
        return dict(answer.json()) if answer.is_success else None

    def _insist_on_prefect(self, method: str, path: str, body: dict[str, Any]) -> None:
        def ask() -> bool | None:
            with suppress(httpx.HTTPError):
                return self._service.prefect.request(method, path, json=body).is_success or None
            return None

        self._wait(ask)

    def _set_state(self, job_id: str, kind: str, name: str) -> None:
        body = {"state": {"type": kind, "name": name}, "force": True}
        with suppress(httpx.HTTPError):  # Prefect is away just then, or the run is gone
            self._service.prefect.post(f"/flow_runs/{job_id}/set_state", json=body)

    def _pick(self, suits: Callable[[Sight], bool]) -> str | None:
        lasts = {job_id: self._watcher.last(job_id) for job_id in list(self._watcher.sights)}
        found = [job_id for job_id, sight in lasts.items() if sight and suits(sight)]
        return self._rng.choice(found) if found else None

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
    "run retried": Faults.retry_run,
    "deployment deleted": Faults.delete_deployment,
    "run set by hand": Faults.set_state,
    "experiment deleted": Faults.delete_experiment,
    "run deleted": Faults.delete_run,
    "run paused": Faults.pause_run,
    "pool paused": Faults.pause_pool,
    "pool limited": Faults.pause_pool,
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
