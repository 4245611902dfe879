"""The trainers' role is made, kept up to date, and limits nobody else."""

import subprocess
import sys
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, select, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from jobs.job_secret import VARIABLE
from jobs.lifecycle.attempts import (
    Attempt,
    read_attempts,
)
from jobs.lifecycle.ends import record_end
from jobs.settings import PROJECT_ROOT
from jobs.stack.database_urls import sibling_url
from jobs.status import JobStatus
from jobs.storage.reports import read_reports
from jobs.storage.tables import engine_for, migrate
from jobs.storage.trainer_role import find_owners_at_work, make_role, renew_rights, role_name, trainer_url
from sft.errors import StackError
from tests.conftest import wait_until
from tests.trainers import Trainer


def test_setting_it_up_again_changes_nothing_and_locks_nothing(url, owner):
    with owner.begin() as connection:
        connection.execute(text("SELECT * FROM job_attempts"))
        make_role(create_engine(url, poolclass=NullPool), url, with_password=False)


def test_columns_of_a_later_version_are_granted_after_its_migration(url, owner, trainer, monkeypatch):
    trainer.begin(monkeypatch)
    with owner.begin() as connection:
        connection.execute(text("ALTER TABLE job_reports ADD COLUMN later int"))
    assert trainer.is_refused("UPDATE job_reports SET later = 1")
    with owner.begin() as connection:
        renew_rights(connection, url)
    trainer.run("UPDATE job_reports SET later = 1")
    with owner.begin() as connection:
        connection.execute(text("ALTER TABLE job_reports DROP COLUMN later"))
        renew_rights(connection, url)


def test_a_role_that_could_do_more_is_refused_by_name(url, owner):
    role = role_name(url)
    with owner.begin() as connection:
        connection.execute(text("COMMENT ON FUNCTION tuneyard_claim(uuid) IS NULL"))
        connection.execute(text("GRANT CREATE ON SCHEMA public TO PUBLIC"))
    with pytest.raises(StackError, match=f"the role {role} may create objects; `REVOKE CREATE ON SCHEMA public"):
        make_role(owner, url, with_password=False)
    with owner.begin() as connection:
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
    make_role(owner, url, with_password=False)


def test_an_owner_without_rights_on_the_role_gives_it_its_rights_all_the_same(url, owner):
    """The role was made by somebody else, as the error of `tuneyard trainer-role` advises."""
    with owner.begin() as connection:
        for statement in ("CREATE ROLE app LOGIN", "CREATE ROLE theirs_trainer LOGIN"):
            connection.execute(text(statement))
    with create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
        connection.execute(text("CREATE DATABASE theirs OWNER app"))
    theirs = make_url(sibling_url(url, "theirs")).set(username="app").render_as_string(hide_password=False)
    app = create_engine(theirs, poolclass=NullPool)
    migrate(theirs)
    assert make_role(app, theirs, with_password=True) is None
    trainer = Trainer(theirs)
    assert trainer.is_refused("SELECT * FROM api_keys")
    assert trainer.run("SELECT tuneyard_claim(:id)", id=trainer.job_id) == [(None,)]
    with app.begin() as connection:
        renew_rights(connection, theirs)


def test_an_owner_who_may_create_roles_needs_not_be_a_superuser(url, owner):
    with owner.begin() as connection:
        connection.execute(text("CREATE ROLE maker LOGIN CREATEROLE"))
    with create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
        connection.execute(text("CREATE DATABASE made OWNER maker"))
    made = make_url(sibling_url(url, "made")).set(username="maker").render_as_string(hide_password=False)
    maker = create_engine(made, poolclass=NullPool)
    migrate(made)
    first = make_role(maker, made, with_password=True)
    assert first is not None
    assert make_role(maker, made, with_password=True, is_renewed=True) not in (first, None)
    trainer = Trainer(made)
    assert trainer.is_refused("SELECT * FROM api_keys")
    held = trainer.engine.connect()
    held.execute(select(1))
    theirs = "FROM pg_stat_activity WHERE usename = 'made_trainer'"

    def is_alone():
        """Connections that were closed before are gone."""
        with maker.connect() as connection:
            return connection.execute(text(f"SELECT count(*) {theirs}")).scalar_one() == 1

    wait_until(is_alone, 30)
    with maker.connect() as connection:  # as the watchdog does with a lost trainer's
        ended = connection.execute(text(f"SELECT pg_terminate_backend(pid) {theirs}"))
        assert ended.all() == [(True,)]
    held.invalidate()
    held.close()


def test_databases_of_other_servers_on_it_have_nothing_for_the_role(url, owner, trainer):
    """PostgreSQL lets every role connect to every database."""
    with create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
        connection.execute(text("CREATE DATABASE prefect"))
    prefect = create_engine(sibling_url(url, "prefect"), poolclass=NullPool)
    with prefect.begin() as connection:
        connection.execute(text("CREATE TABLE flow_run (id int)"))
    role = create_engine(make_url(trainer.url).set(database="prefect"), poolclass=NullPool)
    with role.connect() as connection, pytest.raises(ProgrammingError, match="permission denied for table flow_run"):
        connection.execute(text("SELECT * FROM flow_run"))
    with role.connect() as connection, pytest.raises(ProgrammingError, match="permission denied for schema public"):
        connection.execute(text("CREATE TABLE mine (id int)"))


def test_a_process_without_a_keeper_makes_its_own_secret(url, owner, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    job_id = uuid4()
    here = trainer_url(url, None)
    attempt = Attempt.begin(here, job_id)
    attempt.beat()
    assert read_attempts(owner, [job_id])[job_id].database_role == role_name(url)
    with pytest.raises(StackError, match="the secret is of another job"):
        Attempt.begin(here, uuid4())
    engine_for(here).dispose()
    monkeypatch.setenv(VARIABLE, "")


def test_who_may_not_make_roles_is_told_what_to_do(url, owner, trainer):
    with pytest.raises(StackError, match="connect as the database's owner with the right CREATEROLE"):
        make_role(trainer.engine, sibling_url(url, "elsewhere"), with_password=True)


def test_other_roles_of_the_database_are_not_limited(url, owner, victim):
    """Such as one of the user's for dashboards."""
    with owner.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS dashboards"))
        connection.execute(text("CREATE ROLE dashboards LOGIN"))
        connection.execute(text("GRANT SELECT ON job_reports TO dashboards"))
    reader = create_engine(make_url(url).set(username="dashboards"), poolclass=NullPool)
    with reader.connect() as connection:
        found = connection.execute(text("SELECT count(*) FROM job_reports WHERE job_id = :id"), {"id": victim.job_id})
        assert found.scalar() == 1
    with owner.begin() as connection:
        connection.execute(text("DROP OWNED BY dashboards"))
        connection.execute(text("DROP ROLE dashboards"))


def test_hosts_whose_jobs_own_the_database_are_named(url, owner, victim, monkeypatch):
    with owner.begin() as connection:
        assert find_owners_at_work(connection) == []
    monkeypatch.undo()
    attempt = Attempt.begin(url, uuid4())
    with owner.begin() as connection:
        assert find_owners_at_work(connection) == [read_attempts(owner, [attempt.job_id])[attempt.job_id].host]


def test_each_keeper_makes_a_secret_of_its_own():
    code = "import os, sys; from jobs.job_secret import *; make_secret(); print(os.environ[VARIABLE])"
    command = [sys.executable, "-c", code]
    made = {
        subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    }
    assert [len(secret) for secret in made] == [64, 64]


def test_an_end_is_recorded_once(trainer, owner, monkeypatch):
    attempt = trainer.begin(monkeypatch)
    assert attempt.end(JobStatus.FAILED, "so", "crashed")
    with trainer.engine.begin() as connection:
        assert not record_end(connection, trainer.job_id, JobStatus.COMPLETED)
    assert read_reports(owner, [trainer.job_id])[trainer.job_id].status == "failed"


def test_the_role_may_connect_where_not_everybody_may(url, owner):
    """As in the databases of `deploy/databases.sh`."""
    name, role = make_url(url).database, role_name(url)
    with owner.begin() as connection:
        connection.execute(text(f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC'))
        connection.execute(text(f'REVOKE CONNECT ON DATABASE "{name}" FROM "{role}"'))
        connection.execute(text("COMMENT ON FUNCTION tuneyard_claim(uuid) IS NULL"))
    own = make_url(url).set(username=role).render_as_string(hide_password=False)
    with pytest.raises(OperationalError, match="permission denied for database"):
        create_engine(own, poolclass=NullPool).connect()
    make_role(owner, url, with_password=False)
    create_engine(own, poolclass=NullPool).connect().close()
    with owner.begin() as connection:
        connection.execute(text(f'GRANT CONNECT, TEMPORARY ON DATABASE "{name}" TO PUBLIC'))
