"""A database of an earlier version is brought up to date with what it holds, one of a later version is not touched."""

import logging
import threading
from contextlib import closing
from uuid import uuid4

import alembic.command
import alembic.config
import pytest
from alembic.script import ScriptDirectory
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, inspect, text

from api.main import create_app
from jobs.errors import SchemaMismatch
from jobs.network.deadlines import allow
from jobs.service.access import StackAccess
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.bounded_postgres import bounded_engine_for
from jobs.storage.schema import MIGRATIONS, ensure_current, known_revisions, migrate
from jobs.storage.tables import engine_for
from jobs.watchdog.__main__ import watch
from jobs.watchdog.clocks import Clocks
from jobs.watchdog.lease import Lease
from jobs.webhooks.outbox import add_delivery, list_deliveries
from tests.bare_postgres import upgrade

NEWER = "9999"
INSERT = """
INSERT INTO webhook_deliveries (id, job_id, status, url, payload, state, attempts, expires_at)
VALUES (:id, :job_id, 'failed', :url, '{}', 'delivered', '[]', now())
"""


@pytest.fixture
def url(stack):
    """Of a new, empty database."""
    name = f"schema_{uuid4().hex}"
    ensure_databases(stack.database_url, [name])
    url = sibling_url(stack.database_url, name)
    yield url
    for engine in (engine_for(url), bounded_engine_for(url)):
        engine.dispose()


@pytest.fixture
def plain(url):
    """An engine that does not look at the schema."""
    engine = create_engine(url)
    yield engine
    engine.dispose()


def revision_of(engine):
    with engine.connect() as connection:
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()


def set_revision(engine, revision):
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_the_revisions_are_those_of_the_migrations():
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [known_revisions()[-1]]
    assert {revision.revision for revision in script.walk_revisions()} == set(known_revisions())


@pytest.mark.stack
class TestADatabase:
    """Of its own for each test."""

    def test_deliveries_of_before_are_of_ends_and_are_not_told_again(self, url, plain):
        upgrade(plain, "0003")  # before webhooks were told of more than ends
        job_id, receiver = uuid4(), "http://127.0.0.1:1/"
        with plain.begin() as connection:
            connection.execute(text(INSERT), {"id": uuid4(), "job_id": job_id, "url": receiver})
        migrate(url)
        (delivery,) = list_deliveries(engine_for(url), job_id)
        assert (delivery.event, delivery.event_key, delivery.state) == ("ended", "failed", "delivered")
        assert not add_delivery(engine_for(url), job_id, receiver, {"job_id": str(job_id), "status": "failed"})

    @pytest.mark.parametrize("before", [None, "0001", "0005"])
    @pytest.mark.parametrize("open_engine", [engine_for, bounded_engine_for], ids=["job", "request"])
    def test_whoever_connects_first_brings_an_older_one_up_to_date(self, url, plain, open_engine, before):
        if before:
            upgrade(plain, before)
        with allow(60), open_engine(url).connect() as connection:  # a request of six seconds may be too short
            connection.execute(text("SELECT run_id FROM job_reports"))
        assert revision_of(plain) == known_revisions()[-1]

    def test_those_who_start_together_migrate_once(self, url, plain, caplog):
        upgrade(plain, "0002")
        with caplog.at_level(logging.INFO, "jobs.storage.schema"):
            threads = [threading.Thread(target=migrate, args=[url]) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert revision_of(plain) == known_revisions()[-1]
        assert len([record for record in caplog.records if "was migrated from 0002" in record.getMessage()]) == 1

    def test_a_newer_one_is_refused_and_left_alone(self, url, plain, stack):
        migrate(url)
        set_revision(plain, NEWER)
        for open_engine in (engine_for, bounded_engine_for):
            with pytest.raises(
                SchemaMismatch, match=f"schema is 9999, and this version of Tuneyard supports {known_revisions()[-1]}"
            ):
                open_engine(url).connect()
        settings = stack.model_copy(update={"database_url": url})
        for path in ("/train", "/api/sft/configs", "/queue"):
            answer = TestClient(create_app(settings)).get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "schema_mismatch")
            assert "Install that version" in answer.json()["detail"]
        assert revision_of(plain) == NEWER

    def test_a_migration_that_fails_leaves_all_as_it_was(self, url, plain):
        upgrade(plain, "0003")
        with plain.begin() as connection:
            connection.execute(text("ALTER TABLE job_reports ADD COLUMN ended_at text"))  # in the way of 0006
        tables = inspect(plain).get_table_names()
        for _ in range(2):
            with pytest.raises(SchemaMismatch, match=r"from 0003 to [0-9]+ .*already exists.*; nothing has changed"):
                migrate(url)
        assert (revision_of(plain), inspect(plain).get_table_names()) == ("0003", tables)
        with plain.begin() as connection:
            connection.execute(text("ALTER TABLE job_reports DROP COLUMN ended_at"))
        migrate(url)  # nobody holds the lock
        assert revision_of(plain) == known_revisions()[-1]

    def test_a_process_that_runs_notices(self, url, plain, stack, monkeypatch):
        monkeypatch.setattr("jobs.service.access.CHECK_SECONDS", 0.0)
        with closing(StackAccess(stack.model_copy(update={"database_url": url}))) as access:
            access.open()
            set_revision(plain, NEWER)  # its pool has a connection of before
            with pytest.raises(SchemaMismatch):
                access.open()
            set_revision(plain, known_revisions()[-1])
            access.open()
            ensure_current(engine_for(url))

    def test_a_watchdog_of_before_stops_working(self, url, plain, caplog, monkeypatch):
        monkeypatch.setattr("jobs.watchdog.__main__.SCHEMA_SECONDS", 0.0)
        migrate(url)
        done = []

        class Enough(Exception):
            """Ends the watch."""

        def work():
            done.append(1)
            if len(done) == 2:
                set_revision(plain, NEWER)
            assert len(done) < 4, "it goes on"

        def sleep(_seconds):
            if any("No task runs until" in record.getMessage() for record in caplog.records):
                raise Enough

        import jobs.watchdog.__main__ as watchdog

        monkeypatch.setattr(watchdog.time, "sleep", sleep)
        lease = Lease(url)
        with pytest.raises(Enough):
            watch(lease, [watchdog.PeriodicTask("work", 0.0, work)], Clocks(lease.engine))
        assert len(done) == 2
