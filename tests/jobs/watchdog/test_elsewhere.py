"""Jobs on other hosts, over a real Prefect server and database: what their watchdog does without seeing a process."""

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy.exc import OperationalError

from jobs.lifecycle.attempts import HEARTBEAT_SECONDS, mark_crashed, mark_interrupted
from jobs.lifecycle.ends import keep_run
from jobs.settings import Settings
from jobs.storage.reports import read_reports
from jobs.watchdog.cancellations import GRACE_SECONDS, KILL_SECONDS, Cancellations
from jobs.watchdog.elsewhere import OFFLINE_SECONDS, OTHERS_SECONDS, PREFECT_SECONDS, SILENCE_SECONDS, START_SECONDS
from jobs.watchdog.recovery import Recovery
from jobs.watchdog.stopwatch import Stopwatch
from jobs.webhooks.outbox import list_deliveries
from tests.jobs.watchdog.test_recovery import Bench

pytestmark = pytest.mark.stack

POD_SECONDS = 1000.0
GONE = 1  # seconds between a lost worker's heartbeats


@pytest.fixture(scope="module")
def bench_of_module(stack: Settings) -> Iterator[Bench]:
    bench = Bench(stack)
    bench.be_online("here", interval_seconds=1000)  # it stays so however long the tests take
    bench.be_online("lost", GONE)
    yield bench
    bench.client.close()


@pytest.fixture
def bench(bench_of_module: Bench) -> Iterator[Bench]:
    """No run of another test is active."""
    yield bench_of_module
    active = ["PENDING", "RUNNING", "CRASHED", "CANCELLING", "SCHEDULED", "PAUSED"]
    for runs in bench_of_module.runs.read(active, "finetune"):
        for run in runs:
            bench_of_module.put(run["id"], "CANCELLED")


@pytest.fixture
def recovery(bench: Bench) -> Recovery:
    """A watchdog of another host that has known Prefect for a while, after the worker `lost` has gone."""
    made = bench.recovery(is_local=False, pod_start_seconds=POD_SECONDS)
    bench.look_after(made, PREFECT_SECONDS)
    time.sleep(3 * GONE + 0.5)
    return made


def cancellations(bench: Bench) -> Cancellations:
    return Cancellations(bench.engine, bench.runs, False, Stopwatch(lambda: bench.now))


def test_heartbeats_tell_that_an_attempt_is_alive(bench: Bench, recovery: Recovery) -> None:
    run = bench.make()
    bench.give(run, "lost")
    attempt = bench.begin(run)
    for _ in range(3):
        attempt.beat()
        bench.look_after(recovery, SILENCE_SECONDS - 1)
    assert bench.state(run) == "Running"

    bench.look_after(recovery, SILENCE_SECONDS)
    assert bench.state(run) == "AwaitingRetry"
    assert "the worker was lost" in bench.read(run)["state"]["message"]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_run_whose_worker_is_offline_before_it_has_begun_is_given_to_another(
    bench: Bench, recovery: Recovery, state: str
) -> None:
    lost, waiting = bench.make(state), bench.make(state)
    bench.give(lost, "lost")
    bench.give(waiting, "here")
    bench.look_after(recovery, OFFLINE_SECONDS - 1)
    assert bench.state(lost) == state.title(), "its label may be of the worker that had it before"
    bench.look_after(recovery, 1)
    assert (bench.state(lost), bench.state(waiting)) == ("AwaitingRetry", state.title())
    assert bench.attempt(lost).lost == 1


def test_a_worker_that_only_seems_to_be_offline_as_prefect_was_down_keeps_its_runs(bench: Bench) -> None:
    run = bench.make("PENDING")
    bench.give(run, "lost")
    time.sleep(3 * GONE + 0.5)
    bench.look_after(recovery := bench.recovery(is_local=False), OFFLINE_SECONDS, PREFECT_SECONDS - OFFLINE_SECONDS - 1)
    assert bench.state(run) == "Pending"
    bench.look_after(recovery, 1)
    assert bench.state(run) == "AwaitingRetry"


def test_a_pending_run_does_not_wait_for_ever_for_a_process_that_does_not_come(
    bench: Bench, recovery: Recovery
) -> None:
    """Its worker is online again, or its code is missing; a pod may have to wait for a node, but not for ever."""
    process, pod = bench.make("PENDING"), bench.make("PENDING")
    bench.give(process, "here")
    bench.give(pod, "lost", "kubernetes", "jobs:finetune-x")
    bench.look_after(recovery, START_SECONDS - 1)
    assert (bench.state(process), bench.state(pod)) == ("Pending", "Pending")
    bench.look_after(recovery, 1)
    assert (bench.state(process), bench.state(pod)) == ("AwaitingRetry", "Pending")
    assert "no process of the job has started in time" in bench.read(process)["state"]["message"]
    bench.look_after(recovery, POD_SECONDS - START_SECONDS)
    assert bench.state(pod) == "AwaitingRetry"


def test_a_job_that_never_starts_fails_in_the_end(bench: Bench, recovery: Recovery) -> None:
    run = bench.make("PENDING")
    for lost in range(3):
        bench.put(run, "PENDING")
        bench.give(run, "here")
        bench.look_after(recovery, START_SECONDS)
        assert bench.attempt(run).lost == lost + 1
        bench.change(run, settled_at=datetime.fromtimestamp(0, UTC))
    assert bench.state(run) == "Failed"
    assert read_reports(bench.engine, [UUID(run)])[UUID(run)].error_code == "not_started"


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_stopped_attempt_is_rescheduled_at_once_and_not_counted(
    bench: Bench, recovery: Recovery, has_begun: bool
) -> None:
    run = bench.make("RUNNING" if has_begun else "PENDING")
    bench.give(run, "here")
    if has_begun:
        bench.begin(run).release(is_interrupted=True)
    else:
        mark_interrupted(bench.engine, UUID(run))
    recovery.look()
    assert bench.state(run) == "AwaitingRetry"
    assert (bench.attempt(run).lost, bench.attempt(run).is_interrupted) == (0, False)
    assert "it was stopped" in bench.read(run)["state"]["message"]


def test_an_attempt_that_ended_while_its_run_was_paused_is_not_taken_for_the_next_one(
    bench: Bench, recovery: Recovery
) -> None:
    run = bench.make()
    with bench.engine.begin() as connection:
        keep_run(connection, UUID(run), bench.read(run))
    bench.begin(run).release(is_interrupted=True)
    bench.put(run, "PAUSED")
    recovery.look()
    bench.put(run, "RUNNING")  # the next process, which has not begun its attempt
    bench.give(run, "here")
    bench.look_after(recovery, 10)
    assert bench.state(run) == "Running"


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_crash_that_its_keeper_has_recorded_is_known_at_once(
    bench: Bench, recovery: Recovery, has_begun: bool
) -> None:
    run = bench.make("RUNNING" if has_begun else "PENDING")
    with bench.engine.begin() as connection:
        keep_run(connection, UUID(run), bench.read(run))
    pid = 4242
    if has_begun:
        bench.begin(run)
        bench.change(run, pid=pid)
    assert mark_crashed(bench.engine, UUID(run), pid + has_begun, "killed", "of another attempt")
    if not has_begun:
        recovery.look()
        assert bench.state(run) == "AwaitingRetry"
        return
    recovery.look()
    assert bench.state(run) == "Running", "it was another process"
    assert mark_crashed(bench.engine, UUID(run), pid, "killed", "the process was killed")
    recovery.look()
    assert bench.state(run) == "AwaitingRetry"
    assert "the process was killed" in bench.read(run)["state"]["message"]
    assert bench.attempt(run).lost == 1


def test_a_crash_that_prefect_tells_of_is_believed_when_nothing_is_heard_and_its_repetition_at_once(
    bench: Bench, recovery: Recovery
) -> None:
    run = bench.make("CRASHED")
    bench.begin(run)
    bench.look_after(recovery, 2 * HEARTBEAT_SECONDS - 1)
    assert bench.state(run) == "Crashed"
    bench.look_after(recovery, 1)
    assert bench.state(run) == "AwaitingRetry"
    bench.put(run, "CRASHED")
    recovery.look()
    assert (bench.state(run), bench.attempt(run).lost) == ("AwaitingRetry", 1)


def test_a_lost_process_that_is_frozen_in_a_transaction_holds_nobody_up(
    bench: Bench, recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.lifecycle import attempts
    from jobs.storage import tables

    run = bench.make()
    attempt = bench.begin(run)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run)
    engine = tables.engine_for.__wrapped__(bench.database_url)  # as its own process has it
    monkeypatch.setattr(attempts, "engine_for", lambda _url: engine)
    with suppress(OperationalError), attempt.writing():
        bench.look_after(recovery, SILENCE_SECONDS)
        assert bench.state(run) == "AwaitingRetry"
    engine.dispose()


def test_runs_of_other_flows_on_a_lost_host_do_not_stay_running(bench: Bench, recovery: Recovery) -> None:
    lost, pod, here = (bench.make(deployment=bench.another) for _ in range(3))
    bench.give(lost, "lost")
    bench.give(pod, "lost", "kubernetes", "jobs:other-x")
    bench.give(here, "here")
    bench.look_after(recovery, OFFLINE_SECONDS)
    assert [bench.state(run) for run in (lost, pod, here)] == ["Crashed", "Running", "Running"]
    bench.look_after(recovery, OTHERS_SECONDS - OFFLINE_SECONDS)
    assert [bench.state(run) for run in (pod, here)] == ["Crashed", "Running"]


def test_a_cancellation_does_not_wait_for_a_worker_that_is_lost(bench: Bench) -> None:
    at_work, never_begun, other = bench.make(), bench.make("PENDING"), bench.make(deployment=bench.another)
    attempt = bench.begin(at_work)
    for run in (at_work, never_begun, other):
        bench.give(run, "lost")
        bench.put(run, "CANCELLING")
    duty = cancellations(bench)
    duty.finish()
    assert bench.attempt(at_work).cancelled_at is not None, "by which its process learns of it"
    assert bench.attempt(at_work).token == attempt.token, "it may save its last step"
    bench.now += GRACE_SECONDS
    duty.finish()
    assert (bench.state(at_work), bench.state(never_begun)) == ("Cancelling", "Cancelled")
    bench.now += KILL_SECONDS - GRACE_SECONDS
    duty.finish()
    assert (bench.state(at_work), bench.state(other)) == ("Cancelled", "Cancelled")
    assert bench.attempt(at_work).token is None, "and writes no more"
    assert [delivery.status for delivery in list_deliveries(bench.engine, UUID(at_work))] == ["cancelled"]


def test_a_cancellation_ends_as_soon_as_the_process_has_saved_its_last_step(bench: Bench) -> None:
    run = bench.make()
    attempt = bench.begin(run)
    bench.put(run, "CANCELLING")
    duty = cancellations(bench)
    duty.finish()
    attempt.release(is_interrupted=True)
    bench.now += GRACE_SECONDS
    duty.finish()
    assert bench.state(run) == "Cancelled"
