"""What people do to runs in Prefect's UI, over a real Prefect server and database: each job comes to one end."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import UUID, uuid4

import pytest

from jobs.engine.listing import JobFilters
from jobs.engine.pool_runs import PoolRuns
from jobs.engine.processes import VARIABLE, find_processes
from jobs.lifecycle.attempts import Attempt, Superseded
from jobs.lifecycle.ends import record_end
from jobs.service.job_service import JobService
from jobs.settings import PROJECT_ROOT, Settings
from jobs.status import JobStatus, status_of
from jobs.storage.reports import read_reports, set_report
from jobs.storage.tables import JobReport
from jobs.vocabulary import FLOW_NAME, StateName
from jobs.watchdog.manual_changes import LEAVE_SECONDS, ManualChanges
from jobs.watchdog.recovery import GONE_SECONDS
from jobs.webhooks.outbox import list_deliveries
from tests.conftest import wait_until
from tests.jobs.watchdog.test_recovery import Bench
from tuneyard_wire.jobs import Progress, Result

pytestmark = pytest.mark.stack

CONFIG = {"base_model": "nobody/changes", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}


class HandsBench(Bench):
    """The bench with a second duty, and jobs that could train."""

    def __init__(self, stack: Settings) -> None:
        super().__init__(stack)
        self.runs = PoolRuns(self.client, self.runs.work_pool, self.engine)
        self.api_url = str(stack.prefect_api_url)

    def changes(self) -> ManualChanges:
        return ManualChanges(self.engine, self.runs, self.api_url, is_local=True, clock=lambda: self.now)

    def make(
        self, state: str = "RUNNING", deployment: str | None = None, queue: str | None = None, **parameters: Any
    ) -> str:
        body: dict[str, Any] = {"parameters": {"webhook_url": "http://127.0.0.1:9/hook", "config": CONFIG} | parameters}
        if queue is not None:
            body["work_queue_name"] = queue
        path = f"/deployments/{deployment or self._deployment}/create_flow_run"
        made = self.client.post(path, json=body | {"enforce_parameter_schema": False})
        run: str = made.raise_for_status().json()["id"]
        if state != "SCHEDULED":
            self.put(run, state)
        return run

    def report(self, run: str) -> JobReport:
        return read_reports(self.engine, [UUID(run)])[UUID(run)]

    def told(self, run: str) -> list[str]:
        return [delivery.status for delivery in list_deliveries(self.engine, UUID(run))]


@pytest.fixture(scope="module")
def bench_of_module(stack: Settings) -> Iterator[HandsBench]:
    bench = HandsBench(stack)
    yield bench
    bench.client.close()


@pytest.fixture
def bench(bench_of_module: HandsBench) -> Iterator[HandsBench]:
    """No run of a test outlives it: it would hold a slot of the stack's."""
    yield bench_of_module
    active = ["PENDING", "RUNNING", "CRASHED", "CANCELLING", "SCHEDULED", "PAUSED"]
    for runs in bench_of_module.runs.read(active, FLOW_NAME):
        for run in runs:
            bench_of_module.put(run["id"], "CANCELLED")


@pytest.fixture
def start_process() -> Iterator[Any]:
    started = []

    def start(run: str, api_url: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        environment = {VARIABLE: run, "PREFECT_API_URL": api_url, "PATH": ""}
        process = subprocess.Popen(command, env=environment, cwd=PROJECT_ROOT)
        started.append(process)
        wait_until(lambda: bool(find_processes(run)), 30)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


ENDS = [(JobStatus.COMPLETED, "Completed"), (JobStatus.FAILED, "Failed"), (JobStatus.CANCELLED, "Cancelled")]


@pytest.mark.parametrize(("status", "state"), ENDS)
@pytest.mark.parametrize("by", ["AwaitingRetry", "Scheduled", "Paused", "Pending"])
def test_an_end_never_changes_whatever_its_run_is_set_to(bench, status, state, by):
    run = bench.make()
    attempt = bench.begin(run)
    changes = bench.changes()
    changes.look()  # the run is kept
    with attempt.writing() as connection:
        set_report(connection, UUID(run), result=Result.example(), progress=Progress.example())
    attempt.end(status, *(("no rows", "invalid_dataset") if status is JobStatus.FAILED else ()))
    bench.put(run, state.upper())
    before = bench.report(run)
    kind = by.upper() if by in ("Paused", "Pending") else "SCHEDULED"
    bench.runs.set_state(run, {"type": kind, "name": by}, force=True)
    with pytest.raises(Superseded, match="a final status never changes"):
        bench.begin(run)
    changes.look()
    after = bench.report(run)
    assert bench.state(run) == state
    for name in ("status", "ended_at", "error", "error_code", "result", "progress"):
        assert getattr(after, name) == getattr(before, name), name
    assert (after.status, bench.attempt(run).number) == (status.value, 1)
    assert bench.told(run) == [status.value]


def test_a_process_that_was_given_up_writes_nothing_into_an_ended_jobs_report(bench):
    run = bench.make()
    attempt = bench.begin(run)
    with bench.engine.begin() as connection:
        record_end(connection, UUID(run), JobStatus.FAILED, "lost", "killed")
        set_report(connection, UUID(run), result={"tokens": 0}, error=None)
        assert not record_end(connection, UUID(run), JobStatus.COMPLETED)
    with pytest.raises(Superseded):
        attempt.end(JobStatus.COMPLETED)
    assert (bench.report(run).error, bench.report(run).result) == ("lost", None)


BY_HAND = [
    ("COMPLETED", "failed", "ended_by_hand", "Failed"),
    ("FAILED", "failed", "ended_by_hand", "Failed"),
    ("CANCELLED", "cancelled", None, "Cancelled"),
]


@pytest.mark.parametrize(("state", "status", "code", "shown"), BY_HAND)
@pytest.mark.parametrize("is_running", [True, False])
def test_a_state_that_is_set_by_hand_ends_the_job_and_its_process(
    bench, start_process, stack, state, status, code, shown, is_running
):
    run = bench.make("RUNNING" if is_running else "SCHEDULED")
    changes = bench.changes()
    changes.look()
    process = start_process(run, bench.api_url) if is_running else None
    attempt = bench.begin(run) if is_running else None
    bench.put(run, state)
    changes.look()
    if not is_running:  # found by the duty that looks for ends
        wait_until(lambda: bench.report(run).status is not None, 60)
    report = bench.report(run)
    assert (report.status, report.error_code, bench.told(run)) == (status, code, [status])
    assert code is None or f"to {state.title()} in Prefect" in report.error
    wait_until(lambda: bench.state(run) == shown, 60)
    if attempt and process:
        with pytest.raises(Superseded):
            attempt.beat()
        bench.now += LEAVE_SECONDS
        changes.look()
        assert process.wait(30) == -9


@pytest.mark.parametrize("state", ["PAUSED", "SCHEDULED"])
def test_a_job_that_is_paused_while_it_trains_lets_go_and_counts_no_attempt(bench, start_process, state):
    run = bench.make()
    process, changes = start_process(run, bench.api_url), bench.changes()
    changes.look()
    bench.begin(run)
    bench.put(run, state)
    changes.look()
    assert process.wait(30) == -15  # told to stop: a job's process saves its last step
    changes.look()
    assert (bench.attempt(run).token, bench.attempt(run).is_interrupted) == (None, True)
    bench.put(run, "RUNNING")  # as Prefect resumes it
    bench.look_after(bench.recovery(), 5.0)
    assert (bench.state(run), bench.attempt(run).lost) == ("AwaitingRetry", 0)


def test_a_run_that_is_deleted_while_it_trains_is_a_cancelled_job(bench, start_process):
    run = bench.make()
    process, changes = start_process(run, bench.api_url), bench.changes()
    changes.look()
    attempt = bench.begin(run)
    bench.client.delete(f"/flow_runs/{run}").raise_for_status()
    changes.look()
    assert (bench.report(run).status, bench.told(run)) == ("cancelled", ["cancelled"])
    with pytest.raises(Superseded):
        attempt.beat()
    bench.now += LEAVE_SECONDS
    changes.look()
    assert process.wait(30) == -9


@pytest.mark.parametrize("state", ["SCHEDULED", "PAUSED"])
def test_a_run_that_is_deleted_while_it_waits_is_a_cancelled_job(bench, state):
    run = bench.make(state)
    changes = bench.changes()
    changes.look()
    bench.client.delete(f"/flow_runs/{run}").raise_for_status()
    changes.look()
    assert (bench.report(run).status, bench.told(run)) == ("cancelled", ["cancelled"])


def test_a_deleted_run_is_found_though_another_job_ends_at_the_same_moment(bench):
    ending, deleted = bench.make("SCHEDULED"), bench.make("SCHEDULED")
    changes = bench.changes()
    changes.look()
    bench.put(ending, "CANCELLED")
    changes.look()
    bench.client.delete(f"/flow_runs/{deleted}").raise_for_status()
    with bench.engine.begin() as connection:
        record_end(connection, UUID(ending), JobStatus.CANCELLED)
    changes.look()
    assert bench.report(deleted).status == "cancelled"


def test_runs_that_lose_their_deployment_or_queue_are_made_again_in_their_place(bench, stack):
    flow = bench.client.post("/flows/", json={"name": "finetune"}).json()["id"]
    wanted = {"name": "first", "flow_id": flow, "work_pool_name": bench.runs.work_pool}
    first = bench.client.post("/deployments/", json=wanted).raise_for_status().json()["id"]
    waiting, paused, retried, taken = (
        bench.make(state, first, metadata={"n": state}) for state in ("SCHEDULED", "PAUSED", "RUNNING", "PENDING")
    )
    bench.runs.set_state(retried, {"type": "SCHEDULED", "name": "AwaitingRetry"}, force=True)
    changes = bench.changes()
    changes.look()
    since = bench.read(waiting)["expected_start_time"]
    bench.client.patch(f"/work_pools/{stack.work_pool}", json={"is_paused": True}).raise_for_status()
    bench.client.delete(f"/deployments/{first}").raise_for_status()
    said = f"Deployment {first} no longer exists, cancelled run."  # as Prefect's worker does
    bench.runs.set_state(taken, {"type": "CANCELLED", "name": "Cancelled", "message": said}, force=True)
    try:
        changes.look()
        found = bench.runs.find_by_id(map(UUID, (waiting, paused, retried, taken)))
        states = [found[UUID(job_id)]["state_name"] for job_id in (waiting, paused, retried, taken)]
        assert states == ["Scheduled", "Paused", "AwaitingRetry", "Scheduled"]
        assert bench.report(taken).status is None
        again = found[UUID(waiting)]
        assert again["run_id"] != waiting
        assert again["parameters"]["metadata"] == {"n": "SCHEDULED"}
        assert again["next_scheduled_start_time"] == since
        changes.look()
        assert bench.runs.find_by_id([UUID(waiting)])[UUID(waiting)]["run_id"] == again["run_id"]
        assert Attempt.begin(bench.database_url, UUID(again["run_id"])).job_id == UUID(waiting)
        with closing(JobService(stack)) as service:
            for beginning, listed in ((waiting[:20], [waiting]), (again["run_id"][:20], [])):
                jobs = service.list_jobs(JobFilters(id_prefix=beginning)).jobs
                assert [str(job.id) for job in jobs] == listed
        for job_id in found:
            bench.runs.set_state(str(job_id), {"type": "CANCELLED", "name": "Cancelled"}, force=True)
    finally:
        bench.client.patch(f"/work_pools/{stack.work_pool}", json={"is_paused": False}).raise_for_status()


def test_a_deleted_queue_of_the_first_jobs_is_the_first_again(bench, stack):
    pool = f"/work_pools/{stack.work_pool}"
    flow = bench.client.post("/flows/", json={"name": "finetune"}).json()["id"]
    wanted = {"name": "ranked", "flow_id": flow, "work_pool_name": stack.work_pool}
    ranked = bench.client.post("/deployments/", json=wanted).raise_for_status().json()["id"]
    bench.client.patch(pool, json={"is_paused": True}).raise_for_status()
    try:
        made = bench.client.post(f"{pool}/queues", json={"name": "high", "priority": 1})
        assert made.status_code in (201, 409)  # 409: another test's jobs had this priority
        waiting = bench.make("SCHEDULED", ranked, "high")
        bench.changes().look()
        bench.client.delete(f"{pool}/queues/high").raise_for_status()
        bench.changes().look()
        again = bench.runs.find_by_id([UUID(waiting)])[UUID(waiting)]
        assert (again["work_queue_name"], again["run_id"] != waiting) == ("high", True)
        queues = bench.client.post(f"{pool}/queues/filter", json={}).raise_for_status().json()
        assert min(queues, key=lambda queue: queue["priority"])["name"] == "high"
        bench.runs.set_state(waiting, {"type": "CANCELLED", "name": "Cancelled"}, force=True)
    finally:
        bench.client.patch(pool, json={"is_paused": False}).raise_for_status()
        bench.client.delete(f"/deployments/{ranked}").raise_for_status()


def test_a_job_that_lost_its_process_after_its_deployment_goes_on_in_another_run(bench, stack):
    flow = bench.client.post("/flows/", json={"name": "finetune"}).json()["id"]
    wanted = {"name": "gone", "flow_id": flow, "work_pool_name": bench.runs.work_pool}
    gone = bench.client.post("/deployments/", json=wanted).raise_for_status().json()["id"]
    run = bench.make("RUNNING", gone)
    bench.begin(run)
    since = bench.read(run)["expected_start_time"]
    changes = bench.changes()
    changes.look()
    bench.client.patch(f"/work_pools/{stack.work_pool}", json={"is_paused": True}).raise_for_status()
    try:
        bench.client.delete(f"/deployments/{gone}").raise_for_status()
        bench.look_after(bench.recovery(), GONE_SECONDS)
        state = bench.read(run)["state"]
        assert state["name"] == StateName.LOST, "no worker may take it: it would never take anything again"
        assert status_of(state["type"], state["name"], has_free_slot=False) is JobStatus.RUNNING
        bench.changes().look()
        found = bench.runs.find_by_id([UUID(run)])[UUID(run)]
        assert (found["state_name"], found["next_scheduled_start_time"]) == ("AwaitingRetry", since)
        assert (found["run_id"] != run, bench.attempt(run).lost) == (True, 1)
        bench.runs.set_state(run, {"type": "CANCELLED", "name": "Cancelled"}, force=True)
    finally:
        bench.client.patch(f"/work_pools/{stack.work_pool}", json={"is_paused": False}).raise_for_status()


@pytest.mark.parametrize(
    "parameters",
    [{}, {"config": "text"}, {"config": []}, {"config": {"lora_r": -1}}, {"webhook_url": 1}, {"config": None, "x": 1}],
)
def test_parameters_that_are_edited_to_nonsense_are_a_failed_job_with_its_cause(bench, parameters):
    run = bench.make("SCHEDULED")
    bench.client.patch(f"/flow_runs/{run}", json={"parameters": parameters}).raise_for_status()
    bench.put(run, "FAILED")  # as Prefect's engine does, before the flow's first line
    wait_until(lambda: UUID(run) in read_reports(bench.engine, [UUID(run)]), 60)
    wait_until(lambda: bench.report(run).status is not None, 60)
    assert (bench.report(run).status, bench.report(run).error_code) == ("failed", "invalid_config")


def test_another_stacks_processes_are_left_alone(bench, start_process):
    process, changes = start_process(str(uuid4()), "http://127.0.0.1:9/api"), bench.changes()
    changes.look()
    bench.now += 2 * LEAVE_SECONDS
    changes.look()
    assert process.poll() is None


def test_the_slot_of_a_job_that_has_ended_is_free_before_prefect_hears_of_the_end(bench, stack):
    with closing(JobService(stack)) as service:
        wait_until(lambda: not service._queue.is_busy(), 120)  # with jobs of other tests
        run = bench.make()
        attempt = bench.begin(run)
        assert service._queue.is_busy()
        attempt.end(JobStatus.COMPLETED)
        assert bench.state(run) == "Running"
        assert not service._queue.is_busy()
        assert service.get(run).status is JobStatus.COMPLETED
