"""`tuneyard trainer-role` as an administrator types it, and what `doctor` says of jobs that own the database."""

import json
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from typer.testing import CliRunner

import cli.__main__ as cli
from cli.trainer_role import check_trainers
from jobs.lifecycle.attempts import Attempt
from jobs.settings import Settings
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.bounded_postgres import bounded_engine_for
from jobs.storage.tables import engine_for
from tests.bare_postgres import server
from tests.conftest import wait_until


@pytest.fixture(scope="module")
def url():
    with tempfile.TemporaryDirectory(prefix="tuneyard-role-") as folder, server(Path(folder)) as maintenance:
        ensure_databases(maintenance, ["tuneyard"])
        url = sibling_url(maintenance, "tuneyard")
        yield url
        engine_for(url).dispose()
        bounded_engine_for(url).dispose()


@pytest.fixture
def run(url, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEYARD_HOME", str(tmp_path))
    monkeypatch.setenv("TUNEYARD_DATABASE_URL", url)
    return lambda *words: CliRunner().invoke(cli.main, ["trainer-role", *words])


def read_secret(url):
    with engine_for(url).connect() as connection:
        return connection.execute(text("SELECT rolpassword FROM pg_authid WHERE rolname = 'tuneyard_trainer'")).scalar()


def test_the_url_is_shown_once_and_the_role_can_do_little(run, url):
    made = run()
    assert (made.exit_code, made.stdout.count("\n")) == (0, 1)
    shown = make_url(made.stdout.strip())
    assert (shown.username, shown.database) == ("tuneyard_trainer", "tuneyard")
    assert read_secret(url).startswith("SCRAM-SHA-256$")
    assert str(shown.password) not in made.stderr + read_secret(url)
    with create_engine(shown, poolclass=NullPool).connect() as connection:
        assert connection.execute(text("SELECT has_table_privilege('api_keys', 'SELECT')")).scalar() is False

    kept = read_secret(url)
    again = run()
    assert (
        again.stdout == "Role tuneyard_trainer has its rights and keeps its password; --new-password sets a new one.\n"
    )
    assert read_secret(url) == kept
    assert json.loads(run("--json").stdout) == {"role": "tuneyard_trainer", "url": None}
    renewed = make_url(json.loads(run("--new-password", "--json").stdout)["url"])
    assert renewed.password != shown.password
    assert read_secret(url) != kept


def test_the_password_that_is_shown_lets_a_worker_in_and_no_other(run, url):
    """PostgreSQL asks for it once its configuration says so, as that of a server on a network does."""
    shown = make_url(run("--new-password").stdout.strip())
    with engine_for(url).begin() as connection:
        path = Path(make_url(url).query["host"]) / "pg_hba.conf"
        before = path.read_text()
        path.write_text(f"local tuneyard tuneyard_trainer scram-sha-256\n{before}")
        connection.execute(text("SELECT pg_reload_conf()"))
    try:
        wait_until(lambda: not connects(shown.set(password="wrong")), 60)
        assert connects(shown)
    finally:
        path.write_text(before)
        with engine_for(url).begin() as connection:
            connection.execute(text("SELECT pg_reload_conf()"))


def connects(url):
    try:
        create_engine(url, poolclass=NullPool).connect().close()
    except OperationalError:
        return False
    return True


def test_without_a_database_of_ones_own_there_is_nothing_to_make(run, monkeypatch):
    monkeypatch.delenv("TUNEYARD_DATABASE_URL")
    result = run()
    assert result.exit_code == 3 or result.exit_code == 4
    assert "TUNEYARD_DATABASE_URL is not set; set it to your database" in result.stderr


def test_doctor_names_hosts_whose_jobs_own_the_database(run, url):
    trainers = make_url(run("--new-password").stdout.strip())
    settings = Settings()

    def check(settings):
        (finding,) = check_trainers(settings)
        return finding

    assert (check(settings).level, check(settings).detail) == ("ok", "no job of the last day connected as its owner")
    Attempt.begin(url, uuid4())
    found = check(settings)
    assert found.level == "warn"
    assert "could make API keys" in found.detail
    assert "`tuneyard trainer-role`" in found.remedy
    here = trainers.render_as_string(hide_password=False)
    assert check(settings.model_copy(update={"database_url": here})).level == "ok"


@pytest.mark.parametrize(
    "other",
    [
        *("nonsense", "sqlite:///x.db", "mysql://ann:hush@127.0.0.1/x", "postgres://ann:hush@127.0.0.1/x"),
        *("postgresql://ann:hush@127.0.0.1/", "postgresql://ann:hush@127.0.0.1:port/x"),
    ],
)
def test_an_address_of_no_database_is_refused_without_showing_it(other, monkeypatch):
    monkeypatch.setenv("TUNEYARD_DATABASE_URL", other)
    done = CliRunner().invoke(cli.main, ["trainer-role"])
    assert done.exit_code not in (0, 1)
    assert "must be postgresql://USER@HOST/DATABASE" in done.output
    assert "hush" not in done.output
