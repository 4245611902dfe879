"""What waits for Prefect, MLflow or PostgreSQL ends by its deadline, whatever those do."""

import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from api.main import create_app
from jobs.clients.keys import ApiKeyCache
from jobs.engine.prefect_client import call, open_prefect_client
from jobs.mlflow_server import MlflowServer
from jobs.network.deadlines import Breaker, allow, call_deadline, seconds_left
from jobs.results.archive_members import Member, MlflowFile
from jobs.results.result_files import list_registered_files
from jobs.settings import Settings
from jobs.stack import postgres
from jobs.stack.readiness import check_parts
from jobs.storage.bounded_postgres import bounded_engine_for
from jobs.storage.connections import translate_errors
from sft.errors import StackError
from tests.client.scripted_service import Scripted, ScriptedService
from tests.stalling import StallingServer, measure

KINDS = ("silent", "slow head", "slow body", "later", "hangs up")
ALLOWED, NO_LONGER_THAN = 0.6, 5.5  # by default a call may take six seconds


@pytest.fixture(params=KINDS)
def stalling(request):
    with closing(StallingServer(request.param)) as server:
        yield server


def fails_in_time(ask):
    def expect():
        with allow(ALLOWED), pytest.raises(StackError) as raised:
            ask()
        expect.message = str(raised.value)

    assert measure(expect) < NO_LONGER_THAN
    return expect.message


def test_a_call_of_prefect_ends_in_time(stalling, tmp_path):
    with open_prefect_client(Settings(home=tmp_path, prefect_api_url=f"{stalling.url}/api")) as client:
        assert "Prefect's API" in fails_in_time(lambda: call(client.read_flow_runs))


def test_a_call_of_mlflow_ends_in_time(stalling):
    assert "MLflow" in fails_in_time(lambda: list_registered_files(MlflowServer(stalling.url), "a", "1"))


@pytest.mark.parametrize("kind", ["silent", "slow head", "slow body"])
def test_the_parts_are_judged_in_time(kind, tmp_path):
    with closing(StallingServer(kind)) as server:
        database = f"postgresql+psycopg2://postgres@127.0.0.1:{server.port}/tuneyard"
        settings = Settings(
            home=tmp_path, prefect_api_url=f"{server.url}/api", mlflow_tracking_uri=server.url, database_url=database
        )
        found = {}
        assert measure(lambda: found.update(check_parts(settings))) < 25
    assert not any(check.ok for check in found.values())


def test_a_file_of_mlflow_that_trickles_ends(monkeypatch):
    monkeypatch.setattr("jobs.results.archive_members.READ_SECONDS", ALLOWED)
    with closing(StallingServer("slow body")) as server:
        member = Member("weights", 1000, remote=MlflowFile(MlflowServer(server.url), "weights"))
        with pytest.raises(Exception, match="MLflow has sent too little within 1 s"):
            [*member.read(None)]


def test_a_server_that_answers_again_is_tried_while_there_is_time(tmp_path):
    away, here = Scripted(503, "", {"Retry-After": "3600"}), Scripted(200, "[]", {"Content-Type": "application/json"})
    no_token = Scripted(404, "{}", {"Content-Type": "application/json"})
    with closing(ScriptedService(no_token, away, away, here)) as server:
        settings = Settings(home=tmp_path, prefect_api_url=f"{server.url}/api")
        with open_prefect_client(settings) as client, allow(30):
            assert call(client.read_flow_runs) == []
    assert len(server.received) == 4


def test_those_who_come_after_a_call_in_vain_do_not_wait():
    breaker = Breaker("Prefect's API", TimeoutError)
    with pytest.raises(TimeoutError), breaker.watch():
        raise TimeoutError
    for _ in range(3):
        with pytest.raises(StackError, match="Prefect's API does not respond"), breaker.watch():
            pytest.fail("it was asked")
    time.sleep(1.1)
    with breaker.watch(), pytest.raises(StackError), breaker.watch():  # one looks, the others do not wait for that
        pytest.fail("two look")
    with breaker.watch():  # it is there again
        pass


def test_a_slow_call_beside_others_that_are_answered_is_no_outage():
    breaker = Breaker("Prefect's API", TimeoutError)

    def call_slowly():
        with breaker.watch():
            time.sleep(0.01)
            with breaker.watch():
                pass
            raise TimeoutError

    with pytest.raises(TimeoutError):
        call_slowly()
    with breaker.watch():
        pass


def test_a_deadline_within_another_ends_with_it():
    with call_deadline(1):
        with call_deadline(10):
            assert 0 < seconds_left() <= 1
        with allow(0.1), call_deadline():
            assert seconds_left() <= 0.1
    assert seconds_left() == float("inf")


@pytest.mark.parametrize("kind", ["silent", "slow head"])
def test_a_database_that_never_answers_ends_in_time(kind):
    with closing(StallingServer(kind)) as server:
        url = f"postgresql+psycopg2://postgres@127.0.0.1:{server.port}/tuneyard"

        def ask():
            with translate_errors(), bounded_engine_for(url).connect():
                pytest.fail("connected")

        assert "database can't be reached" in fails_in_time(ask)
        with allow(ALLOWED):
            assert measure(lambda: postgres.is_ready(url)) < NO_LONGER_THAN


def test_the_keys_are_not_asked_for_one_after_the_other():
    asked = []

    def read():
        asked.append(1)
        time.sleep(1)
        raise StackError("away")

    cache = ApiKeyCache(read, Path("/nowhere"))
    began, together = time.monotonic(), threading.Barrier(40)

    def refresh():
        together.wait()
        with pytest.raises(StackError):
            cache.refresh(None)

    threads = [threading.Thread(target=refresh) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 20  # half of what forty would take one after the other
    assert len(asked) <= 2


@pytest.mark.stack
class TestARealDatabase:
    """Of which a process is stopped, or a statement takes too long."""

    @pytest.fixture
    def engine(self, stack):
        engine = bounded_engine_for(f"{stack.database_url}&application_name={uuid4()}")
        yield engine
        engine.dispose()

    def test_a_stopped_server_process_is_given_up(self, engine):
        with engine.connect() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            os.kill(pid, signal.SIGSTOP)
            try:
                assert "database can't be reached" in fails_in_time(lambda: self._ask(connection, "SELECT 1"))
            finally:
                os.kill(pid, signal.SIGCONT)
        with engine.connect() as connection:  # the pool has not kept it
            assert connection.execute(text("SELECT 1")).scalar_one() == 1

    def test_nothing_goes_on_in_the_server(self, engine, stack):
        with engine.connect() as connection:
            fails_in_time(lambda: self._ask(connection, "SELECT pg_sleep(45), 'mark of this test'"))
        plain = create_engine(stack.database_url)
        wanted = text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE :mark AND pid <> pg_backend_pid()")
        deadline = time.monotonic() + 30
        with plain.connect() as connection:
            while connection.execute(wanted, {"mark": "%pg_sleep(45)%"}).scalar_one():
                assert time.monotonic() < deadline, "the statement is still there"
                time.sleep(0.2)
                connection.rollback()
        plain.dispose()

    def test_writes_may_take_longer(self, engine):
        with allow(10), engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(1)"))
        with allow(ALLOWED), pytest.raises(OperationalError), engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(1)"))

    @staticmethod
    def _ask(connection, query):
        with translate_errors():
            connection.execute(text(query))


def test_a_database_that_does_not_answer_is_waited_for_once(tmp_path):
    with closing(StallingServer("silent")) as server:
        settings = Settings(
            home=tmp_path,
            database_url=f"postgresql+psycopg2://postgres@127.0.0.1:{server.port}/tuneyard",
            prefect_api_url="http://127.0.0.1:9/api",
            mlflow_tracking_uri="http://127.0.0.1:9",
        )
        client = TestClient(create_app(settings))
        with allow(ALLOWED):
            assert measure(lambda: client.get("/train")) < NO_LONGER_THAN
            assert min(measure(lambda: client.get("/queue")) for _ in range(5)) < 0.4  # one may look again
        answer = client.get("/queue")
    assert (answer.status_code, answer.json()["code"]) == (503, "stack_unavailable")
    assert "database" in answer.json()["detail"]
