"""Processes that are killed in the middle of what they write: it is there in full or not at all."""

import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, inspect, text

from jobs.clients.keys import KeyScope, create_key, list_keys, read_snapshot
from jobs.project import PROJECT_ROOT
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.schema import known_revisions, migrate
from sft.errors import StackError
from tests.bare_postgres import server, upgrade
from tests.conftest import wait_until

MIGRATE = "from jobs.storage.schema import migrate; import sys; migrate(sys.argv[1])"
CREATE = """
import sys
from jobs.clients.keys import KeyScope, create_key
from jobs.storage.tables import engine_for
create_key(engine_for(sys.argv[1]), "killed", KeyScope.ADMIN)
"""


@pytest.fixture(scope="module")
def postgres():
    with tempfile.TemporaryDirectory(prefix="tuneyard-killed-") as home, server(Path(home)) as url:
        yield url


@pytest.fixture
def url(postgres):
    name = f"killed_{uuid4().hex}"
    ensure_databases(postgres, [name])
    return sibling_url(postgres, name)


@pytest.fixture
def plain(url):
    engine = create_engine(url)
    yield engine
    engine.dispose()


def describe(engine):
    """The schema, and which one it is said to be."""
    found = inspect(engine)
    columns = {table: sorted(c["name"] for c in found.get_columns(table)) for table in found.get_table_names()}
    with engine.connect() as connection:
        return columns, connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()


def kill_while_it_waits_for(plain, table, url, code):
    """Start a process that will wait for this table, which somebody holds, and kill it there."""
    watching = create_engine(url, isolation_level="AUTOCOMMIT")

    def count_waiting():
        wanted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'"
        with watching.connect() as connection:
            return connection.execute(text(wanted)).scalar_one()

    with plain.connect() as connection:
        connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        process = subprocess.Popen([sys.executable, "-c", code, url], cwd=PROJECT_ROOT)
        try:
            wait_until(lambda: count_waiting() == 1, 90)
        finally:
            process.kill()
            process.wait()
        if code == MIGRATE:  # the server ends it although the table is held still
            wait_until(lambda: count_waiting() == 0, 30)
    watching.dispose()


@pytest.mark.parametrize("table", ["job_reports", "webhook_deliveries"])
def test_a_migration_that_is_killed_is_not_begun(url, plain, table):
    upgrade(plain, "0003")
    before = describe(plain)
    kill_while_it_waits_for(plain, table, url, MIGRATE)
    assert describe(plain) == before
    migrate(url)
    assert describe(plain)[1] == [known_revisions()[-1]]


def test_who_migrates_for_ever_keeps_others_waiting_for_some_seconds_only(url, plain):
    with plain.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(7415001)"))
        with pytest.raises(StackError, match="another process has been migrating the database's schema"):
            migrate(url, lock_seconds=0.3)
    plain.dispose()
    migrate(url, lock_seconds=30)


def test_a_key_whose_making_is_killed_is_none(url, plain):
    migrate(url)
    kill_while_it_waits_for(plain, "api_keys", url, CREATE)
    assert list_keys(plain) == []
    assert read_snapshot(plain).is_open
    record, _ = create_key(plain, "next", KeyScope.ADMIN)
    assert [key.id for key in list_keys(plain)] == [record.id]
