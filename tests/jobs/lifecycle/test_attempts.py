"""Attempts at a job: only the newest one may write, and it is known to be alive."""

import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text

from jobs.lifecycle import attempts
from jobs.lifecycle.attempts import Attempt, Superseded, read_attempts
from jobs.settings import PROJECT_ROOT
from jobs.status import JobStatus
from jobs.storage.connections import wait_for_database
from jobs.storage.reports import read_reports, set_report
from jobs.storage.tables import engine_for
from sft.errors import StackError
from tests.conftest import free_port, wait_until

pytestmark = pytest.mark.stack

BEAT = """
import sys, time
from uuid import UUID
from jobs.lifecycle import attempts
attempts.HEARTBEAT_SECONDS = 0.05
with attempts.Heartbeat(attempts.Attempt.begin(sys.argv[1], UUID(sys.argv[2]))):
    print("begun", flush=True)
    time.sleep(60)
    print("still there", flush=True)
"""


@pytest.fixture
def begin(stack):
    job_id = uuid4()
    return lambda: Attempt.begin(stack.database_url, job_id)


def find(attempt):
    return read_attempts(engine_for(attempt.database_url), [attempt.job_id])[attempt.job_id]


def test_the_newest_attempt_is_the_only_one_that_writes(begin):
    first = begin()
    with first.writing() as connection:
        set_report(connection, first.job_id, phase="first")
    second = begin()
    assert (first.number, second.number) == (1, 2)
    for forbidden in (first.writing, first.publishing):
        with pytest.raises(Superseded, match=r"no longer this process's \(attempt 1\)"), forbidden():
            raise AssertionError
    with pytest.raises(Superseded):
        first.beat()
    with pytest.raises(Superseded):
        first.release()

    with second.writing() as connection:
        set_report(connection, second.job_id, phase="second")
    report = read_reports(engine_for(second.database_url), [second.job_id])[second.job_id]
    assert report.phase == "second"


def test_the_token_of_one_job_writes_nothing_of_another(begin, stack):
    """Nor does one that was made up, or the number of the right attempt."""
    mine, other = begin(), Attempt.begin(stack.database_url, uuid4())
    engine = engine_for(stack.database_url)
    before = find(other)
    for forged in (replace(mine, job_id=other.job_id), replace(other, token=uuid4()), replace(other, token=mine.token)):
        for forbidden in (forged.writing, forged.publishing):
            with pytest.raises(Superseded), forbidden():
                raise AssertionError
        for write in (forged.beat, forged.release, lambda forged=forged: forged.end(JobStatus.COMPLETED)):
            with pytest.raises(Superseded):
                write()
    after = find(other)
    assert (after.token, after.heartbeat_at, after.cause) == (before.token, before.heartbeat_at, None)
    assert read_reports(engine, [other.job_id]) == {}
    with other.writing() as connection:
        set_report(connection, other.job_id, phase="goes on")


def test_nobody_takes_over_while_something_is_published_and_heartbeats_go_on(begin):
    first, taken = begin(), threading.Event()

    def take_over():
        begin()
        taken.set()

    with first.publishing():
        thread = threading.Thread(target=take_over)
        thread.start()
        before = find(first).heartbeat_at
        first.beat()
        assert find(first).heartbeat_at > before
        assert not taken.wait(0.5)
    assert taken.wait(60)
    thread.join()
    assert find(first).number == 2


def test_what_was_published_stays_though_the_database_went_away_meanwhile(begin, caplog):
    attempt = begin()
    with attempt.publishing(), engine_for(attempt.database_url).connect() as other:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
        assert other.execute(text(f"{others} AND datname = current_database()")).scalar()
    assert "was lost during a publication" in caplog.text
    with pytest.raises(KeyError), attempt.publishing():
        raise KeyError


def test_an_attempt_survives_pickling(begin):
    attempt = begin()
    with pickle.loads(pickle.dumps(attempt.publishing))():  # noqa: S301 - our own
        pass


def test_letting_go_says_why(begin):
    attempt = begin()
    attempt.release(cause="stack_unavailable", message="away")
    found = find(attempt)
    assert (found.token, found.is_interrupted, found.cause, found.message) == (None, False, "stack_unavailable", "away")
    again = begin()
    assert (find(again).cause, find(again).token) == (None, again.token)


def test_a_process_that_is_given_up_ends_at_once_and_says_nothing_more(stack, begin):
    mine = begin()
    command = [sys.executable, "-c", BEAT, stack.database_url, str(mine.job_id)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        assert process.poll() is None
        begin()
        assert (process.wait(60), process.stdout.read()) == (0, "")


def test_a_job_waits_for_its_database_but_not_for_ever(stack):
    nobody = create_engine(f"postgresql+psycopg2://127.0.0.1:{free_port()}/none")
    with pytest.raises(StackError, match="has been down for 1 s"), wait_for_database(nobody, 1):
        raise AssertionError

    class Back:
        """Comes back at the third try."""

        tries = 0

        def connect(self):
            self.tries += 1
            return (nobody if self.tries < 3 else engine_for(stack.database_url)).connect()

    with wait_for_database(Back(), 30) as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1


def test_heartbeats_outlast_a_database_that_is_away(monkeypatch, caplog):
    monkeypatch.setattr(attempts, "HEARTBEAT_SECONDS", 0.02)
    away = Attempt(f"postgresql+psycopg2://127.0.0.1:{free_port()}/none", uuid4(), 1, uuid4())
    with attempts.Heartbeat(away):
        wait_until(lambda: caplog.text.count("The database can't be reached") > 2, 60)
