"""A worker that Prefect has let run out of slots, in a real stack."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import psutil
import pytest

from jobs.engine.pool_runs import PoolRuns
from jobs.settings import Settings
from jobs.stack.postgres import has_watchdog
from jobs.stack.process_manager import Supervisor
from jobs.watchdog.idle_workers import IDLE_SECONDS, LATE, IdleWorkers
from tests.conftest import wait_until

pytestmark = pytest.mark.stack


@pytest.fixture
def alone(stack: Settings) -> Iterator[None]:
    """The stack's own watchdog does not look meanwhile."""
    supervisor = Supervisor(stack.home)
    supervisor.stop("watchdog")
    yield
    supervisor.start("watchdog")
    wait_until(lambda: has_watchdog(str(stack.database_url)), 120)


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


@pytest.mark.usefixtures("alone")
def test_a_worker_that_lost_its_slot_to_a_deleted_deployment_is_started_anew(stack):
    supervisor = Supervisor(stack.home)
    now = 0.0
    with httpx.Client(base_url=str(stack.prefect_api_url), timeout=30) as client:
        runs = PoolRuns(client, stack.work_pool)
        flow = client.post("/flows/", json={"name": "of nobody"}).raise_for_status().json()["id"]

        def deploy(name: str) -> str:
            wanted = {"name": name, "flow_id": flow, "work_pool_name": stack.work_pool}
            made: str = client.post("/deployments/", json=wanted).raise_for_status().json()["id"]
            return made

        def make(deployment: str) -> str:
            body = {"state": {"type": "PAUSED", "name": "Paused"}}
            path = f"/deployments/{deployment}/create_flow_run"
            made: str = client.post(path, json=body).raise_for_status().json()["id"]
            return made

        def schedule(run: str, ago: timedelta) -> None:
            details = {"scheduled_time": (datetime.now(UTC) - ago).isoformat()}
            state = {"type": "SCHEDULED", "name": "Scheduled", "state_details": details}
            runs.set_state(run, state, force=True)

        def state(run: str) -> str:
            return str(client.get(f"/flow_runs/{run}").raise_for_status().json()["state_type"])

        def pids() -> dict[str, int | None]:
            parts = supervisor.processes().values()
            return {part.name: part.pid for part in parts if part.name.startswith("worker-")}

        gone, there = deploy("gone"), deploy("there")
        taken, waiting = make(gone), make(there)
        client.delete(f"/deployments/{gone}").raise_for_status()
        duty = IdleWorkers(runs, supervisor, clock=lambda: now)
        before = pids()
        schedule(taken, LATE)
        wait_until(lambda: state(taken) == "CANCELLED", 60)  # by the worker, which keeps the slot
        duty.look()
        now = IDLE_SECONDS
        duty.look()
        assert pids() == before, "nothing waits"

        schedule(waiting, timedelta())
        duty.look()
        assert pids() == before, "it may be about to take it"
        time.sleep(6)  # two of a worker's polls
        assert state(waiting) == "SCHEDULED", "Prefect frees the slot by itself now: jobs.watchdog.idle_workers can go"
        schedule(waiting, 2 * LATE)
        IdleWorkers(runs, supervisor).look()
        assert pids() == before, "it may only just have started"
        for pid in before.values():
            psutil.Process(pid).suspend()
        wait_until(lambda: all(map(is_stopped, before.values())), 30)
        duty.look()
        assert pids() == before, "somebody has stopped it"
        for pid in before.values():
            psutil.Process(pid).resume()
        wait_until(lambda: not any(map(is_stopped, before.values())), 30)
        duty.look()
        now += IDLE_SECONDS

        def is_started_anew() -> bool:
            duty.look()  # a poll of the worker in the same moment hides the run from one look
            return not pids().items() & before.items()

        wait_until(is_started_anew, 30)
        wait_until(lambda: state(waiting) != "SCHEDULED", 120)
        runs.set_state(waiting, {"type": "CANCELLED", "name": "Cancelled"}, force=True)
