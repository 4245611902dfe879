"""Several watchdogs over a real PostgreSQL: one is active, whatever becomes of it, and a former one does nothing."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from jobs.settings import PROJECT_ROOT
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases, find_watchdog
from jobs.stack.readiness import _check_watchdog
from jobs.storage.schema import migrate
from jobs.watchdog.clocks import COUNTED_GAP_SECONDS, Clocks
from jobs.watchdog.lease import APPLICATION, LEASE_SECONDS, Lease, LeaseLost
from tests.bare_postgres import server
from tests.conftest import free_port, wait_until

TAKEOVER_SECONDS = 15.0
BUSY = 3  # the bound holds on a machine with a core to spare, which one that runs tests may not have

# A watchdog with one task that notes each of its acts; at each start it says who it is.
WATCHDOG = """
import logging, os, sys, time
from sqlalchemy import text
from jobs.watchdog import __main__ as watchdog
from jobs.watchdog.clocks import Clocks
from jobs.watchdog.lease import Lease
logging.basicConfig(level=logging.INFO)
lease = Lease(sys.argv[1])
clocks = Clocks(lease.engine)
stopwatch = clocks.stopwatch("work")
def work():
    seconds = stopwatch.seconds("run", "silence", "same")
    with lease.engine.begin() as connection:
        connection.execute(text("INSERT INTO acts VALUES (:pid, :seconds, clock_timestamp())"),
                           {"pid": os.getpid(), "seconds": seconds})
        if os.path.exists(sys.argv[2]):
            connection.execute(text("SELECT * FROM rows FOR UPDATE"))
            time.sleep(0.6)  # a good moment to be frozen
watchdog.watch(lease, [watchdog.PeriodicTask("work", 0.2, work)], clocks)
"""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="tuneyard-lease-") as folder, server(Path(folder)) as url:
        yield url


@pytest.fixture
def url(database: str) -> str:
    """Of a new database with tables for what watchdogs do."""
    name = f"lease_{uuid4().hex}"
    ensure_databases(database, [name])
    url = sibling_url(database, name)
    migrate(url)
    run(url, "CREATE TABLE acts (pid int, seconds float, at timestamptz); CREATE TABLE rows (id int)")
    run(url, "INSERT INTO rows VALUES (1)")
    return url


def run(url: str, statement: str, **values: object) -> list[tuple[Any, ...]]:
    engine = create_engine(url)
    with engine.begin() as connection:
        done = connection.execute(text(statement), values)
        found = [tuple(row) for row in done] if done.returns_rows else []
    engine.dispose()
    return found


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Callable[[], psutil.Popen]]:
    started: list[psutil.Popen] = []

    def start() -> psutil.Popen:
        command = [sys.executable, "-c", WATCHDOG, url, str(tmp_path / "slow")]
        environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
        with (tmp_path / f"watchdog-{len(started)}.log").open("w") as log:
            started.append(psutil.Popen(command, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def is_free(url: str) -> bool:
    """Whether nobody holds a lock on the rows."""
    try:
        run(url, "SELECT * FROM rows FOR UPDATE NOWAIT")
    except OperationalError:
        return False
    return True


def last(url: str) -> int | None:
    found = run(url, "SELECT pid FROM acts ORDER BY at DESC LIMIT 1")
    return int(found[0][0]) if found else None


def count_listeners(url: str) -> int:
    """The connections of watchdogs that are active or stand by."""
    named = "SELECT count(DISTINCT application_name) FROM pg_stat_activity WHERE datname = current_database()"
    ((count,),) = run(url, f"{named} AND application_name LIKE :like", like=f"{APPLICATION}%")
    return int(count)


def two(url: str, start: Callable[[], psutil.Popen]) -> tuple[psutil.Popen, psutil.Popen]:
    """An active watchdog and one that stands by."""
    active = start()
    wait_until(lambda: last(url) == active.pid, 60)
    standby = start()
    wait_until(lambda: count_listeners(url) == 2, 60)
    time.sleep(2)
    assert last(url) == active.pid
    assert not run(url, "SELECT 1 FROM acts WHERE pid = :pid", pid=standby.pid)
    assert _check_watchdog(url).ok
    return active, standby


def test_a_killed_watchdog_is_replaced_without_waiting_for_its_lease(
    url: str, start: Callable[[], psutil.Popen]
) -> None:
    active, standby = two(url, start)
    for _ in range(3):  # on a busy machine one may take longer
        before = time.monotonic()
        active.kill()
        wait_until(lambda: last(url) == standby.pid, BUSY * TAKEOVER_SECONDS)  # noqa: B023 - called at once
        seconds = time.monotonic() - before
        assert _check_watchdog(url).ok
        if seconds < LEASE_SECONDS - 3:
            return
        wait_until(lambda: count_listeners(url) == 1, 30)
        active, standby = standby, start()
        wait_until(lambda: count_listeners(url) == 2, 60)
    pytest.fail(f"it took {seconds:.1f} s")


@pytest.mark.parametrize("when", ["anywhere", "in a transaction"])
def test_a_frozen_watchdog_is_replaced_and_does_nothing_when_it_wakes_up(
    url: str, start: Callable[[], psutil.Popen], tmp_path: Path, when: str
) -> None:
    active, standby = two(url, start)
    if when == "in a transaction":
        (tmp_path / "slow").touch()
        locked = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE '%FOR UPDATE%'"
        wait_until(lambda: bool(run(url, locked)), 30)
    active.send_signal(signal.SIGSTOP)
    (tmp_path / "slow").unlink(missing_ok=True)
    wait_until(lambda: last(url) == standby.pid, BUSY * TAKEOVER_SECONDS)
    wait_until(lambda: is_free(url), 10)  # it holds no lock any more

    ((woken,),) = run(url, "SELECT clock_timestamp()")
    active.send_signal(signal.SIGCONT)
    time.sleep(5)
    assert run(url, "SELECT at FROM acts WHERE pid = :pid AND at > :woken", pid=active.pid, woken=woken) == []
    standby.kill()
    wait_until(lambda: last(url) == active.pid, BUSY * TAKEOVER_SECONDS)  # it stands by, as any other


def test_a_successor_goes_on_from_the_time_that_was_measured(url: str, start: Callable[[], psutil.Popen]) -> None:
    active, standby = two(url, start)
    ((before,),) = run(url, "SELECT max(seconds) FROM acts")
    active.send_signal(signal.SIGSTOP)
    wait_until(lambda: last(url) == standby.pid, BUSY * TAKEOVER_SECONDS)
    ((after,),) = run(url, "SELECT min(seconds) FROM acts WHERE pid = :pid", pid=standby.pid)
    assert after > before + LEASE_SECONDS - 3


def test_ready_says_that_a_watchdog_is_frozen_or_gone(url: str, start: Callable[[], psutil.Popen]) -> None:
    assert "not running" in _check_watchdog(url).detail
    process = start()
    wait_until(lambda: _check_watchdog(url).ok, 60)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not _check_watchdog(url).ok, BUSY * LEASE_SECONDS)
    holder = find_watchdog(url)
    assert holder is not None
    assert f"pid {process.pid} on {holder.host} has not responded for" in _check_watchdog(url).detail
    process.kill()
    process.wait()
    wait_until(lambda: "not running" in _check_watchdog(url).detail, 30)


def test_who_lost_the_lease_neither_commits_nor_calls_prefect(url: str) -> None:
    first, second = Lease(url), Lease(url)
    with first.turn(), httpx.Client(base_url=f"http://127.0.0.1:{free_port()}") as client:
        first.fence(client)
        with pytest.raises(httpx.ConnectError):
            client.get("/")
        with first.engine.begin() as connection:
            connection.execute(text("INSERT INTO rows VALUES (2)"))
        run(url, "UPDATE watchdog_lease SET expires_at = clock_timestamp()")
        with second.turn():
            with pytest.raises(LeaseLost), create_engine(url).connect(), first.engine.begin() as connection:
                connection.execute(text("INSERT INTO rows VALUES (3)"))
            with pytest.raises(LeaseLost):
                client.get("/")
    assert run(url, "SELECT id FROM rows ORDER BY id") == [(1,), (2,)]


def test_a_long_gap_without_a_watchdog_is_not_counted(url: str) -> None:
    """Jobs could not write heartbeats either while the database was down."""
    for gap, least, most in ((5.0, 100, 130), (COUNTED_GAP_SECONDS + 60, 40, 70), (float("inf"), 0, 30)):
        engine = create_engine(url)
        run(url, "DELETE FROM watchdog_clocks")
        clocks = Clocks(engine)
        clocks.stopwatch("recovery").seconds("run", "silence", "same")
        clocks.save()
        run(url, "UPDATE watchdog_clocks SET since = since - interval '100 s'")
        successor = Clocks(engine)
        stopwatch = successor.stopwatch("recovery")
        successor.load(gap)
        assert least <= stopwatch.seconds("run", "silence", "same") < most
        assert stopwatch.seconds("run", "silence", "another") == 0.0
        stopwatch.forget("run")
        successor.save()
        assert run(url, "SELECT * FROM watchdog_clocks") == []
        engine.dispose()
