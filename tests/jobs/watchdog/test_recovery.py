"""Recovery over a real Prefect server and database, on a work pool that no worker and no other watchdog looks at."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
from sqlalchemy import Engine, update

from jobs.engine.pool_runs import PoolRuns
from jobs.engine.processes import VARIABLE, find_processes
from jobs.keeper import NOTE
from jobs.lifecycle.attempts import Attempt, mark_cancelled, read_attempts
from jobs.settings import PROJECT_ROOT, Settings
from jobs.storage.reports import read_reports
from jobs.storage.tables import JobAttempt, engine_for
from jobs.vocabulary import FLOW_NAME
from jobs.watchdog.cancellations import GRACE_SECONDS, KILL_SECONDS, Cancellations
from jobs.watchdog.elsewhere import LEAVE_SECONDS, SAME_LOSS, SILENCE_SECONDS, START_SECONDS
from jobs.watchdog.recovery import GONE_SECONDS, PENDING_SECONDS, Recovery
from jobs.watchdog.stopwatch import Stopwatch
from jobs.webhooks.outbox import list_deliveries
from tests.conftest import free_port, wait_until

pytestmark = pytest.mark.stack

POOL = "looked-after"
GONE_PID = 2**22 - 1  # that no process has
WEBHOOK = "http://127.0.0.1:9/hook"  # nobody listens there


class Bench:
    """Runs of the pool, and a watchdog's duty whose time the test tells."""

    def __init__(self, stack: Settings) -> None:
        assert stack.database_url
        self.database_url: str = stack.database_url
        self.engine: Engine = engine_for(stack.database_url)
        self.client = httpx.Client(base_url=str(stack.prefect_api_url), timeout=30)
        self.runs = PoolRuns(self.client, POOL)
        self.now = 0.0
        self.client.post("/work_pools/", json={"name": POOL, "type": "process"})
        flow = self.client.post("/flows/", json={"name": FLOW_NAME}).raise_for_status().json()["id"]
        other = self.client.post("/flows/", json={"name": "another"}).raise_for_status().json()["id"]
        self._flow = flow
        self._deployment, self.another = self._deploy(flow), self._deploy(other)

    def _deploy(self, flow: str) -> str:
        wanted = {"name": "looked-after", "flow_id": flow, "work_pool_name": POOL}
        made: str = self.client.post("/deployments/", json=wanted).raise_for_status().json()["id"]
        return made

    def recovery(self, **settings: Any) -> Recovery:
        settings = {"max_attempts": 3, "is_local": True} | settings
        return Recovery(self.engine, self.runs, stopwatch=Stopwatch(lambda: self.now), **settings)

    def make(self, state: str = "RUNNING", deployment: str | None = None, queue: str | None = None) -> str:
        body = {"parameters": {"webhook_url": WEBHOOK}, "enforce_parameter_schema": False}
        body |= {"work_queue_name": queue} if queue else {}
        path = f"/deployments/{deployment or self._deployment}/create_flow_run"
        run: str = self.client.post(path, json=body).raise_for_status().json()["id"]
        self.put(run, state)
        return run

    def start_here(self) -> str:
        """A run of the flow that was started without a deployment, as `finetune()` in Python does it."""
        body = {"flow_id": self._flow, "state": {"type": "RUNNING"}}
        run: str = self.client.post("/flow_runs/", json=body).raise_for_status().json()["id"]
        return run

    def give(self, run: str, worker: str, kind: str = "process", pid: str | None = "1") -> None:
        """Have this worker take the run, as Prefect's workers do."""
        labels = {"prefect.worker.name": worker, "prefect.worker.type": kind}
        self.client.patch(f"/flow_runs/{run}/labels", json=labels).raise_for_status()
        self.client.patch(f"/flow_runs/{run}", json={"infrastructure_pid": pid}).raise_for_status()

    def be_online(self, worker: str, interval_seconds: int = 30) -> None:
        """A heartbeat of this worker; it is offline after three intervals without another."""
        wanted = {"name": worker, "heartbeat_interval_seconds": interval_seconds}
        self.client.post(f"/work_pools/{POOL}/workers/heartbeat", json=wanted).raise_for_status()

    def put(self, run: str, state: str) -> None:
        self.runs.set_state(run, {"type": state, "name": state.title()}, force=True)

    def read(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/flow_runs/{run}").raise_for_status().json()
        return found

    def state(self, run: str) -> str:
        return str(self.read(run)["state_name"])

    def begin(self, run: str) -> Attempt:
        return Attempt.begin(self.database_url, UUID(run))

    def attempt(self, run: str) -> JobAttempt:
        return read_attempts(self.engine, [UUID(run)])[UUID(run)]

    def change(self, run: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(JobAttempt).where(JobAttempt.job_id == UUID(run)).values(**values))

    def look_after(self, recovery: Recovery, *seconds: float) -> None:
        """Look now, and again after each of these times."""
        recovery.look()
        for pause in seconds:
            self.now += pause
            recovery.look()


@pytest.fixture(scope="module")
def bench_of_module(stack: Settings) -> Iterator[Bench]:
    bench = Bench(stack)
    yield bench
    bench.client.close()


@pytest.fixture
def bench(bench_of_module: Bench) -> Iterator[Bench]:
    """No run of another test is active."""
    yield bench_of_module
    active = ["PENDING", "RUNNING", "CRASHED", "CANCELLING", "SCHEDULED"]
    for runs in bench_of_module.runs.read(active, FLOW_NAME):
        for run in runs:
            bench_of_module.put(run["id"], "CANCELLED")


@pytest.fixture
def start_process() -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Starts a process that bears a run's id as the worker's child does, and does nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run: str) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(["sleep", "600"], env=os.environ | {VARIABLE: run}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_job_whose_process_is_gone_begins_again_at_its_old_place_in_the_line(bench: Bench) -> None:
    run = bench.make()
    bench.begin(run)
    before = bench.read(run)
    recovery = bench.recovery()
    bench.look_after(recovery, GONE_SECONDS - 1)
    assert bench.state(run) == "Running"  # it may have ended, and Prefect be about to say so

    bench.look_after(recovery, 1)
    after = bench.read(run)
    assert (after["state_name"], after["infrastructure_pid"]) == ("AwaitingRetry", None)
    assert after["next_scheduled_start_time"] == before["expected_start_time"] == after["expected_start_time"]
    assert (bench.attempt(run).lost, bench.attempt(run).token) == (1, None)


def test_a_job_that_lost_all_its_attempts_has_failed_and_says_why(bench: Bench) -> None:
    run = bench.make()
    recovery = bench.recovery()
    for _ in range(3):
        bench.put(run, "RUNNING")
        bench.begin(run)
        bench.look_after(recovery, GONE_SECONDS)

    assert bench.state(run) == "Failed"
    report = read_reports(bench.engine, [UUID(run)])[UUID(run)]
    assert report.error_code == "killed"
    assert str(report.error).endswith("it was the last of 3 attempts")
    (delivery,) = list_deliveries(bench.engine, UUID(run))
    assert (delivery.status, delivery.payload["error"]) == ("failed", report.error)


def test_an_attempt_that_was_told_to_stop_is_not_lost(bench: Bench) -> None:
    run = bench.make()
    recovery = bench.recovery(max_attempts=1)
    for _ in range(4):
        bench.put(run, "RUNNING")
        bench.begin(run).release(is_interrupted=True)
        bench.look_after(recovery, GONE_SECONDS)
        assert bench.state(run) == "AwaitingRetry"
    assert (bench.attempt(run).number, bench.attempt(run).lost) == (4, 0)


@pytest.mark.parametrize(("attempts", "is_at_once"), [(0, True), (0, False), (1, False)])
def test_a_process_that_was_told_to_stop_before_it_had_begun_is_not_lost(
    bench: Bench, tmp_path: Path, attempts: int, is_at_once: bool
) -> None:
    """As the keeper of a worker that is stopped does it: to a process that was just made, or waits for Prefect."""
    run, recovery = bench.make(), bench.recovery(max_attempts=1)
    for _ in range(attempts):
        bench.begin(run).release(is_interrupted=True)
        bench.look_after(recovery, GONE_SECONDS)
        bench.put(run, "RUNNING")
    nobody = f"http://127.0.0.1:{free_port()}/api"
    environment = os.environ | {"PREFECT_API_URL": nobody, "TUNEYARD_DATABASE_URL": bench.database_url, VARIABLE: run}
    with (tmp_path / "said").open("w") as said:
        keeper = subprocess.Popen([sys.executable, "-m", "jobs.keeper"], cwd=PROJECT_ROOT, env=environment, stderr=said)
        if is_at_once:
            wait_until(lambda: bool(psutil.Process(keeper.pid).children()), 60)
        else:
            wait_until(lambda: "waiting for it" in (tmp_path / "said").read_text(), 120)
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(60) == 0
    bench.look_after(recovery, GONE_SECONDS)
    assert bench.state(run) == "AwaitingRetry"
    assert (bench.attempt(run).number, bench.attempt(run).lost) == (attempts, 0)
    bench.put(run, "RUNNING")
    bench.look_after(recovery, GONE_SECONDS)
    assert bench.state(run) == "AwaitingRetry", "the same loss, told of twice"
    bench.change(run, settled_at=datetime.now(UTC) - SAME_LOSS)
    bench.put(run, "RUNNING")
    bench.look_after(recovery, GONE_SECONDS)
    assert bench.state(run) == "Failed", "the stop was said of the process before alone"


def test_what_an_attempt_said_is_not_said_of_one_after_it_that_never_began(bench: Bench) -> None:
    run = bench.make()
    bench.begin(run).release(cause="registry_unavailable", message="MLflow has been down for 120 s")
    recovery = bench.recovery(max_attempts=2)
    bench.look_after(recovery, GONE_SECONDS)
    bench.change(run, settled_at=datetime.now(UTC) - SAME_LOSS - timedelta(seconds=1))
    bench.put(run, "PENDING")
    bench.look_after(recovery, PENDING_SECONDS)

    assert bench.state(run) == "Failed"
    assert read_reports(bench.engine, [UUID(run)])[UUID(run)].error_code == "crashed"


def test_what_an_attempt_said_it_was_lost_to_is_what_the_job_fails_with(bench: Bench) -> None:
    run = bench.make()
    bench.begin(run).release(cause="registry_unavailable", message="MLflow has been down for 120 s")
    bench.look_after(bench.recovery(max_attempts=1), GONE_SECONDS)

    report = read_reports(bench.engine, [UUID(run)])[UUID(run)]
    assert report.error_code == "registry_unavailable"
    assert str(report.error).startswith("MLflow has been down for 120 s; ")


def test_a_silent_process_is_ended_and_its_job_begins_again(
    bench: Bench, start_process: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    run = bench.make()
    process, attempt = start_process(run), bench.begin(run)
    recovery = bench.recovery()
    bench.look_after(recovery, SILENCE_SECONDS - 1)
    attempt.beat()
    bench.look_after(recovery, SILENCE_SECONDS - 1)
    assert (bench.state(run), process.poll()) == ("Running", None)

    bench.look_after(recovery, 1)
    assert bench.state(run) == "AwaitingRetry"
    assert process.wait(30) == -9
    assert find_processes(run) == []
    assert "no heartbeat" in bench.read(run)["state"]["message"]


READ = """
import os, sys, time
note = os.open(sys.argv[1], os.O_RDWR)
os.dup2(note, 17)
if sys.argv[2] == "idle":
    time.sleep(600)
while True:
    pass
"""


@pytest.fixture
def start_reader(tmp_path: Path) -> Iterator[Callable[[str, str, str], psutil.Process]]:
    """Starts a process of a run with this note of what it reads, which takes CPU time or none."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run: str, note: str, doing: str) -> psutil.Process:
        (tmp_path / "note").write_text(note)
        environment = os.environ | {VARIABLE: run, NOTE: "17"}
        command = [sys.executable, "-c", READ, str(tmp_path / "note"), doing]
        started.append(subprocess.Popen(command, env=environment))
        wait_until(lambda: Path(f"/proc/{started[-1].pid}/fd/17").exists(), 30)
        return psutil.Process(started[-1].pid)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("note", "doing", "pauses", "ends_at"),
    [
        ("{}", "busy", [20, 5, 5, 90, 90, 85, 6], START_SECONDS + 1),
        ("{}", "idle", [20, 5, 5], SILENCE_SECONDS),
        (" ", "busy", [20, 5, 5], SILENCE_SECONDS),
    ],
    ids=["busy reading", "stuck reading", "busy otherwise"],
)
def test_a_silent_process_that_is_busy_reading_an_input_is_ended_by_the_limit_of_that(
    bench: Bench,
    start_reader: Callable[[str, str, str], psutil.Process],
    note: str,
    doing: str,
    pauses: list[float],
    ends_at: float,
) -> None:
    """A template that holds the interpreter lets no heartbeat through; on a busy machine 10 s of CPU time take long."""
    run = bench.make()
    process = start_reader(run, note, doing)
    bench.begin(run)
    recovery = bench.recovery()
    recovery.look()
    silent = 0.0
    for pause in pauses:
        assert bench.state(run) == "Running"
        if doing == "busy":
            used = process.cpu_times().user
            wait_until(lambda used=used: process.cpu_times().user > used + 0.1, 60)
        bench.now += pause
        silent += pause
        recovery.look()
    assert (bench.state(run), silent) == ("AwaitingRetry", ends_at)


def test_a_process_that_is_stopped_before_it_has_begun_is_ended_as_soon(
    bench: Bench, start_process: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    stopped, slow = bench.make("PENDING"), bench.make("PENDING")
    process, other = start_process(stopped), start_process(slow)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 30)
    recovery = bench.recovery()
    bench.look_after(recovery, SILENCE_SECONDS - 1)
    assert bench.state(stopped) == "Pending"

    bench.look_after(recovery, 1)
    assert (bench.state(stopped), bench.state(slow)) == ("AwaitingRetry", "Pending")
    assert (process.wait(30), other.poll()) == (-9, None)


def test_a_job_whose_process_goes_before_it_has_begun_is_not_waited_for(bench: Bench) -> None:
    run = bench.make("PENDING")
    bench.client.patch(f"/flow_runs/{run}", json={"infrastructure_pid": f"here:{GONE_PID}"}).raise_for_status()
    bench.look_after(bench.recovery(), GONE_SECONDS)
    assert bench.state(run) == "AwaitingRetry"


def test_a_process_that_has_let_go_of_its_job_and_does_not_end_is_ended(
    bench: Bench, start_process: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    run = bench.make()
    process = start_process(run)
    bench.begin(run).release(is_interrupted=True)
    recovery = bench.recovery()
    bench.look_after(recovery, LEAVE_SECONDS - 1)
    assert (bench.state(run), process.poll()) == ("Running", None)

    bench.look_after(recovery, 1)
    assert (bench.state(run), process.wait(30), bench.attempt(run).lost) == ("AwaitingRetry", -9, 0)


def test_a_job_at_work_whose_queue_was_deleted_begins_again(bench: Bench) -> None:
    """Its run belongs to no work pool any more. Runs that never had one are not the watchdog's."""
    path = f"/work_pools/{POOL}/queues"
    bench.client.post(path, json={"name": "short-lived"}).raise_for_status()
    run, cancelled = bench.make(queue="short-lived"), bench.make(queue="short-lived")
    bench.put(cancelled, "CANCELLING")
    started_here = bench.start_here()
    bench.begin(run)
    bench.client.delete(f"{path}/short-lived").raise_for_status()
    assert bench.read(run)["work_pool_name"] is None

    bench.look_after(bench.recovery(), GONE_SECONDS)
    assert (bench.state(run), bench.state(started_here)) == ("AwaitingRetry", "Running")
    cancellations = Cancellations(bench.engine, bench.runs, True, Stopwatch(lambda: bench.now))
    cancellations.finish()
    bench.now += GRACE_SECONDS
    cancellations.finish()
    assert bench.state(cancelled) == "Cancelled"
    bench.put(started_here, "CANCELLED")


def test_a_process_that_does_not_react_to_a_cancellation_is_killed_and_not_waited_for(
    bench: Bench, start_process: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    run = bench.make()
    process = start_process(run)
    process.send_signal(signal.SIGSTOP)
    bench.put(run, "CANCELLING")
    cancellations = Cancellations(bench.engine, bench.runs, True, Stopwatch(lambda: bench.now))
    cancellations.finish()
    assert process.poll() is None
    bench.now += KILL_SECONDS
    cancellations.finish()
    assert (process.wait(30), bench.state(run)) == (-9, "Cancelled")


def test_a_watchdog_that_could_not_look_gives_nobody_up_for_that(
    bench: Bench, start_process: Callable[[str], "subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench.make()
    start_process(run)
    bench.begin(run)
    recovery = bench.recovery()
    bench.look_after(recovery, 1)
    bench.now += 10 * SILENCE_SECONDS
    with httpx.Client(base_url="http://127.0.0.1:9") as nobody, monkeypatch.context() as away:
        away.setattr(recovery, "_runs", PoolRuns(nobody, POOL))
        with pytest.raises(httpx.ConnectError):
            recovery.look()
    recovery.look()
    assert bench.state(run) == "Running"


def test_a_late_word_of_a_crash_does_not_hit_the_attempt_that_runs(
    bench: Bench, start_process: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    run = bench.make()
    start_process(run)
    attempt = bench.begin(run)
    bench.put(run, "CRASHED")
    recovery = bench.recovery()
    for _ in range(4):
        attempt.beat()
        bench.look_after(recovery, 1.5)
    assert bench.state(run) == "Running"
    assert bench.attempt(run).lost == 0


def test_one_crash_that_is_told_of_twice_is_one_lost_attempt(bench: Bench) -> None:
    run = bench.make("CRASHED")
    bench.begin(run)
    recovery = bench.recovery()
    bench.look_after(recovery, GONE_SECONDS)
    bench.put(run, "CRASHED")
    bench.look_after(recovery, GONE_SECONDS)
    assert (bench.state(run), bench.attempt(run).lost) == ("AwaitingRetry", 1)


def test_processes_that_never_begin_are_counted_too(bench: Bench) -> None:
    run = bench.make("PENDING")
    recovery = bench.recovery(max_attempts=2)
    bench.look_after(recovery, PENDING_SECONDS - 1)
    assert bench.state(run) == "Pending"
    bench.look_after(recovery, 1)
    assert (bench.state(run), bench.attempt(run).lost) == ("AwaitingRetry", 1)

    bench.change(run, settled_at=datetime.now(UTC) - SAME_LOSS - timedelta(seconds=1))
    bench.put(run, "PENDING")
    bench.look_after(recovery, PENDING_SECONDS)
    assert bench.state(run) == "Failed"
    assert read_reports(bench.engine, [UUID(run)])[UUID(run)].error_code == "crashed"


@pytest.mark.parametrize("by", ["us", "Prefect's UI"])
def test_a_job_that_was_cancelled_is_never_begun_again(bench: Bench, by: str) -> None:
    run = bench.make()
    bench.begin(run)
    if by == "us":
        mark_cancelled(bench.engine, UUID(run), bench.read(run))
    else:
        bench.put(run, "CANCELLING")
    bench.put(run, "CRASHED")
    bench.look_after(bench.recovery(), GONE_SECONDS)
    assert bench.state(run) == "Cancelled"
    (delivery,) = list_deliveries(bench.engine, UUID(run))
    assert delivery.status == "cancelled"


def test_a_run_that_moves_on_while_it_is_looked_at_is_left_alone(bench: Bench) -> None:
    run = bench.make()
    bench.begin(run)
    recovery = bench.recovery()
    recovery.look()
    seen = bench.read(run) | {"run_id": run}
    bench.put(run, "CANCELLING")
    recovery._settle(seen, "killed")  # as it was read a moment before
    assert bench.state(run) in ("Cancelling", "Cancelled")


def test_a_run_of_another_flow_whose_process_is_gone_holds_no_slot(
    bench: Bench, start_process: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    gone, alive = bench.make(deployment=bench.another), bench.make(deployment=bench.another)
    start_process(alive)
    recovery = bench.recovery()
    bench.look_after(recovery, GONE_SECONDS - 1)
    assert bench.state(gone) == "Running"
    bench.look_after(recovery, 1)
    assert (bench.state(gone), bench.state(alive)) == ("Crashed", "Running")
