"""A database with a trainers' role, and processes that have it."""

import tempfile
from pathlib import Path

import pytest

from jobs.lifecycle.ends import keep_run
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.events import write_event
from jobs.storage.reports import set_report
from jobs.storage.tables import engine_for, migrate
from jobs.storage.trainer_role import make_role
from jobs.webhooks.outbox import put_delivery
from tests.bare_postgres import server
from tests.trainers import FACTS, Trainer


@pytest.fixture(scope="module")
def url():
    """A database with a trainer role of its own."""
    with tempfile.TemporaryDirectory(prefix="tuneyard-trainer-") as folder, server(Path(folder)) as maintenance:
        url = sibling_url(maintenance, "tuneyard")
        ensure_databases(maintenance, ["tuneyard"])
        migrate(url)
        make_role(engine_for(url), url, with_password=False)
        yield url
        engine_for(url).dispose()


@pytest.fixture
def owner(url):
    return engine_for(url)


@pytest.fixture
def trainer(url):
    return Trainer(url)


@pytest.fixture
def victim(url, owner, monkeypatch):
    """Another job at work, as its own process has begun it, with an event and a delivery."""
    other = Trainer(url)
    with owner.begin() as connection:
        keep_run(connection, other.job_id, FACTS, client="key x")
    attempt = other.begin(monkeypatch)
    with attempt.writing() as connection:
        set_report(connection, other.job_id, progress={"step": 1})
        write_event(connection, other.job_id, "step", {"step": 1})
        put_delivery(connection, other.job_id, "http://a.example/", {"job_id": str(other.job_id), "status": "running"})
    return other
