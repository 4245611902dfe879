"""Several API processes over one state folder and database, each with settings of its own: none opens another one."""

import asyncio
from uuid import uuid4

import httpx
import pytest

from api.main import create_app
from jobs.clients.keys import ApiKeySnapshot, Client, KeyScope, hash_key
from jobs.settings import Settings
from jobs.storage.connections import DatabaseTimeout

OPEN = ApiKeySnapshot({}, is_open=True)
CLOSED = ApiKeySnapshot({hash_key("key"): Client(uuid4(), "key", KeyScope.ADMIN, uuid4())}, is_open=False)
NOWHERE = {  # with all three set, nothing is started
    "database_url": "postgresql+psycopg2://postgres@127.0.0.1:9/tuneyard",
    "prefect_api_url": "http://127.0.0.1:9/api",
    "mlflow_tracking_uri": "http://127.0.0.1:9",
}
PATHS = ("/train/x/y", "/api/sft/nothing", "/queue/x")  # nothing is there: 404 for who may ask


class Database:
    """Whose keys all processes read."""

    def __init__(self):
        self.snapshot = OPEN
        self.is_away = False

    def read(self):
        if self.is_away:
            raise DatabaseTimeout("away")
        return self.snapshot


class Process:
    """An API with these settings."""

    def __init__(self, home, database, **settings):
        self.app = create_app(Settings(home=home, **NOWHERE, **settings))
        self.app.state.keys._read = database.read

    def ask(self, key=None, host="127.0.0.1"):
        headers = {"Host": host} | ({"Authorization": f"Bearer {key}"} if key else {})

        async def talk():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return {(await client.get(path, headers=headers)).status_code for path in PATHS}

        (status,) = asyncio.run(talk())
        return status


@pytest.fixture
def database(monkeypatch):
    monkeypatch.setattr("jobs.clients.keys.TTL_SECONDS", 0.0)  # each request reads the keys
    return Database()


@pytest.fixture
def processes(tmp_path, database):
    """One that needs keys, one that does not until there are some, one that answers to another name too."""
    strict = Process(tmp_path, database, require_api_key=True)
    return strict, Process(tmp_path, database), Process(tmp_path, database, allowed_hosts=("box.example",))


def test_each_goes_by_its_own_settings_while_there_are_no_keys(processes):
    strict, plain, named = processes
    assert [process.ask() for process in processes] == [401, 404, 404]
    assert [process.ask("key") for process in processes] == [401, 404, 404]
    assert [process.ask(host="box.example") for process in (strict, plain, named)] == [401, 421, 404]


def test_the_first_key_that_one_sees_closes_all(processes, database):
    strict, plain, _ = processes
    assert plain.ask() == 404
    database.snapshot = CLOSED
    assert strict.ask("key") == 404  # and so it leaves the marker
    assert [process.ask() for process in processes] == [401] * 3
    assert [process.ask("key") for process in processes] == [404] * 3
    assert plain.ask("key", host="box.example") == 404  # with a key any name is answered


@pytest.mark.parametrize("seen_by", [0, 1, 2])
def test_none_opens_again_when_the_database_is_emptied_or_away(processes, database, seen_by):
    database.snapshot = CLOSED
    assert processes[seen_by].ask("key") == 404
    database.snapshot = OPEN
    for process in processes:
        assert process.ask() in (401, 503)
        assert process.ask("key") == 503
    database.is_away = True
    for process in processes:
        assert process.ask() in (401, 503)
        assert process.ask("key") == 503
