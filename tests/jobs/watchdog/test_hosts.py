"""Real workers with host names of their own, lost in every way, and a real watchdog that sees none of their processes.

The process of a job begins an attempt, sends heartbeats and saves at a stop as a real one does, but trains nothing;
`make pool` has all of it.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
from sqlalchemy import Engine

from jobs.engine.processes import find_processes
from jobs.lifecycle.attempts import mark_cancelled, read_attempts
from jobs.lifecycle.ends import keep_run
from jobs.settings import PROJECT_ROOT, Settings
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases, has_watchdog
from jobs.storage.tables import JobAttempt, engine_for, migrate
from jobs.vocabulary import FLOW_NAME, RunState, make_state
from jobs.watchdog.elsewhere import PREFECT_SECONDS, SILENCE_SECONDS
from tests.conftest import command_line, wait_until

pytestmark = [
    pytest.mark.stack,
    pytest.mark.timeout(700),
    pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only Linux's root gives host names"),
]

POOL = "hosts"
BUSY = 4  # the bounds hold on a machine with a core to spare, which one that runs tests may not have
DRAIN_SECONDS, CANCEL_SECONDS, CRASH_SECONDS = 10.0, 15.0, 10.0
NEXT_STEP_SECONDS = 60.0  # after the heartbeat's limit
WORKER_BEAT = 2  # seconds

JOB = """
import os, signal, sys, time, httpx
from pathlib import Path
from uuid import UUID
from jobs.early_stop import record_early_stop
from jobs.keeper import end_with_parent
end_with_parent()
record_early_stop()
from jobs.lifecycle.attempts import Attempt, Heartbeat
run = os.environ["PREFECT__FLOW_RUN_ID"]
while Path(os.environ["HOLD"]).exists():
    time.sleep(0.2)
url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{run}/set_state"
httpx.post(url, json={"state": {"type": "RUNNING", "name": "Running"}}, timeout=60).raise_for_status()
class Stop(BaseException): pass
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stop
attempt = Attempt.begin(os.environ["TUNEYARD_DATABASE_URL"], UUID(run))
try:
    with Heartbeat(attempt):
        signal.signal(signal.SIGTERM, stop)
        time.sleep(600)
except Stop:
    time.sleep(1)  # saves its last step
    attempt.release(is_interrupted=True)
"""


class Hosts:
    """A work pool with its own database and watchdog, and hosts to lose."""

    def __init__(self, stack: Settings, folder: Path) -> None:
        self.api_url = str(stack.prefect_api_url)
        self.client = httpx.Client(base_url=self.api_url, timeout=30)
        name = f"hosts_{uuid4().hex}"
        ensure_databases(str(stack.database_url), [name])
        self.url = sibling_url(str(stack.database_url), name)
        migrate(self.url)
        self.engine: Engine = engine_for(self.url)
        self.folder, self.hold = folder, folder / "hold"
        (folder / "flows").mkdir()
        (folder / "flows" / "__init__.py").touch()
        (folder / "flows" / "__main__.py").write_text(JOB)
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "PREFECT_API_URL": self.api_url, "TUNEYARD_DATABASE_URL": self.url, "TUNEYARD_WORK_POOL": POOL,
            "TUNEYARD_HOME": str(folder / "home"), "PREFECT_WORKER_HEARTBEAT_SECONDS": str(WORKER_BEAT),
            "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_HOME": str(folder / "prefect"), "HOLD": str(self.hold),
        }  # fmt: skip
        self.client.post("/work_pools/", json={"name": POOL, "type": "process"})
        flow = self.client.post("/flows/", json={"name": FLOW_NAME}).raise_for_status().json()["id"]
        variables = {
            "command": f"{sys.executable} -m jobs.keeper",
            "env": {"PYTHONPATH": f"{folder}{os.pathsep}{PROJECT_ROOT}"},
        }
        wanted = {"name": POOL, "flow_id": flow, "work_pool_name": POOL, "job_variables": variables}
        self._deployment = self.client.post("/deployments/", json=wanted).raise_for_status().json()["id"]
        self.workers: list[psutil.Popen] = []
        self._log = (folder / "log").open("w")
        self.watchdog = self._start([sys.executable, "-P", "-m", "jobs.watchdog"], PYTHONPATH=str(PROJECT_ROOT))
        wait_until(lambda: has_watchdog(self.url), 90)
        self.began = time.monotonic()

    def _start(self, command: list[str], **more: str) -> psutil.Popen:
        return psutil.Popen(command, env=self.environment | more, stdout=self._log, stderr=self._log, cwd=self.folder)

    def add(self, name: str) -> psutil.Popen:
        """A host with one worker."""
        start = f"hostname {name}; exec {sys.executable} -m prefect worker start --type process --name {name}"
        options = f"--pool {POOL} --limit 1 --prefetch-seconds 0"
        self.workers.append(self._start(["unshare", "--uts", "sh", "-c", f"{start} {options}"]))
        return self.workers[-1]

    def submit(self) -> str:
        path = f"/deployments/{self._deployment}/create_flow_run"
        run: dict[str, Any] = self.client.post(path, json={"parameters": {}}).raise_for_status().json()
        with self.engine.begin() as connection:
            keep_run(connection, UUID(run["id"]), run)
        return str(run["id"])

    def state(self, run: str) -> str:
        return str(self.client.get(f"/flow_runs/{run}").raise_for_status().json()["state_name"])

    def attempt(self, run: str) -> JobAttempt | None:
        return read_attempts(self.engine, [UUID(run)]).get(UUID(run))

    def works(self, run: str, host: str) -> bool:
        attempt = self.attempt(run)
        return attempt is not None and attempt.token is not None and attempt.host == host

    def lose(self, worker: psutil.Popen, run: str) -> None:
        """A host's end, as that of its power: nothing on it says anything any more."""
        processes = [worker, *find_processes(run)]
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    act(process)
        worker.wait()

    def trainer(self, run: str) -> psutil.Process:
        (found,) = self.trainers(run)
        return found

    def trainers(self, run: str) -> list[psutil.Process]:
        return [process for process in find_processes(run) if "flows" in command_line(process)]

    def close(self) -> None:
        for process in (self.watchdog, *self.workers):
            if process.poll() is None:
                process.kill()
                process.wait()
        for run in self.client.post("/flow_runs/filter", json=self._mine()).json():
            for process in find_processes(run["id"]):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            state = {"state": make_state(RunState.CANCELLED), "force": True}
            self.client.post(f"/flow_runs/{run['id']}/set_state", json=state)
        self.client.delete(f"/work_pools/{POOL}")
        self.client.close()
        self._log.close()
        self.engine.dispose()

    def _mine(self) -> dict[str, Any]:
        return {"work_pools": {"name": {"any_": [POOL]}}}


@pytest.fixture(scope="module")
def hosts(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(stack, tmp_path_factory.mktemp("hosts"))
    yield made
    made.close()


@pytest.fixture
def at_work(hosts: Hosts) -> tuple[psutil.Popen, str, str]:
    """A host, its name, and a job that it works on."""
    name = f"host-{uuid4().hex[:6]}"
    worker, run = hosts.add(name), hosts.submit()
    wait_until(lambda: hosts.works(run, name), 120)
    return worker, name, run


def took(condition: Callable[[], bool], seconds: float, what: str) -> None:
    began = time.monotonic()
    wait_until(condition, BUSY * seconds)
    sys.stderr.write(f"{what}: {time.monotonic() - began:.1f} s\n")


def finish(hosts: Hosts, worker: psutil.Popen, run: str) -> None:
    """Nothing of this test is left for the next one."""
    hosts.lose(worker, run)
    hosts.client.post(f"/flow_runs/{run}/set_state", json={"state": make_state(RunState.CANCELLED), "force": True})


def test_a_lost_host_is_noticed_and_another_one_goes_on(hosts: Hosts, at_work: tuple[psutil.Popen, str, str]) -> None:
    worker, _, run = at_work
    other = f"host-{uuid4().hex[:6]}"
    hosts.lose(worker, run)
    successor = hosts.add(other)
    took(lambda: hosts.works(run, other), SILENCE_SECONDS + NEXT_STEP_SECONDS, "from a host's loss to the next attempt")
    attempt = hosts.attempt(run)
    assert attempt is not None
    assert (attempt.number, attempt.lost) == (2, 1)
    finish(hosts, successor, run)


def test_a_drained_host_loses_nothing_and_no_time(hosts: Hosts, at_work: tuple[psutil.Popen, str, str]) -> None:
    worker, _, run = at_work
    worker.terminate()
    took(lambda: hosts.state(run) == "AwaitingRetry", DRAIN_SECONDS, "from SIGTERM to the worker until rescheduled")
    attempt = hosts.attempt(run)
    assert attempt is not None
    assert (attempt.number, attempt.lost) == (1, 0)
    finish(hosts, worker, run)


def test_a_killed_process_is_known_by_its_keeper(hosts: Hosts, at_work: tuple[psutil.Popen, str, str]) -> None:
    worker, name, run = at_work
    hosts.trainer(run).kill()
    took(
        lambda: (found := hosts.attempt(run)) is not None and found.lost == 1,
        CRASH_SECONDS,
        "from SIGKILL until rescheduled",
    )
    took(lambda: hosts.works(run, name), 60, "and to the next attempt")
    time.sleep(8)  # a late report of the crash would hit it
    attempt = hosts.attempt(run)
    assert attempt is not None
    assert (hosts.state(run), attempt.number, attempt.lost) == ("Running", 2, 1)
    finish(hosts, worker, run)


@pytest.mark.parametrize("lost", ["nothing", "worker", "host", "frozen process"])
def test_a_cancellation_takes_15_seconds_wherever_the_worker_is(
    hosts: Hosts, at_work: tuple[psutil.Popen, str, str], lost: str
) -> None:
    worker, _, run = at_work
    if lost == "host":
        hosts.lose(worker, run)
    elif lost == "worker":  # as that of a container: the job goes on
        worker.suspend()
    elif lost == "frozen process":
        worker.suspend()
        hosts.trainer(run).suspend()
    mark_cancelled(hosts.engine, UUID(run))
    cancelling = {"state": make_state(RunState.CANCELLING), "force": False}
    hosts.client.post(f"/flow_runs/{run}/set_state", json=cancelling).raise_for_status()
    took(lambda: hosts.state(run) == "Cancelled", CANCEL_SECONDS, f"to cancel, lost: {lost}")
    attempt = hosts.attempt(run)
    assert attempt is not None
    assert attempt.token is None
    if lost == "worker":
        wait_until(lambda: hosts.trainers(run) == [], 60)
    if lost == "frozen process":
        trainer = hosts.trainer(run)
        trainer.resume()
        assert trainer.wait(60) in (0, None)
    finish(hosts, worker, run)


def test_a_host_that_is_lost_before_the_job_has_begun_gives_it_back(hosts: Hosts) -> None:
    wait_until(lambda: time.monotonic() - hosts.began > PREFECT_SECONDS, PREFECT_SECONDS + 1)
    hosts.hold.touch()
    worker, run = hosts.add("host-lost"), hosts.submit()
    wait_until(lambda: bool(find_processes(run)), 120)
    assert hosts.state(run) in ("Pending", "Submitting")
    hosts.lose(worker, run)
    hosts.hold.unlink()
    took(lambda: hosts.state(run) == "AwaitingRetry", 3 * WORKER_BEAT + 20, "a host lost in PENDING, until rescheduled")
    finish(hosts, worker, run)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP])
def test_another_watchdog_goes_on_with_a_job_that_is_being_given_up(
    hosts: Hosts, at_work: tuple[psutil.Popen, str, str], signal_number: int
) -> None:
    worker, _, run = at_work
    standby = hosts._start([sys.executable, "-P", "-m", "jobs.watchdog"], PYTHONPATH=str(PROJECT_ROOT))
    time.sleep(3)
    hosts.lose(worker, run)
    began = time.monotonic()
    time.sleep(SILENCE_SECONDS / 2)
    hosts.watchdog.send_signal(signal_number)
    limit = SILENCE_SECONDS + 15  # a takeover
    took(lambda: hosts.state(run) == "AwaitingRetry", limit - (time.monotonic() - began), "after the takeover")
    hosts.watchdog.kill()
    hosts.watchdog.wait()
    hosts.watchdog = standby
    finish(hosts, worker, run)
