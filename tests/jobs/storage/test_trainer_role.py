"""What a job's process can do with the trainers' role in a real PostgreSQL, and what it tries in vain."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest
from sqlalchemy import create_engine, make_url, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from jobs.clients.keys import KeyScope, create_key, hash_key
from jobs.job_secret import VARIABLE
from jobs.lifecycle import claiming
from jobs.lifecycle.attempts import (
    Attempt,
    Superseded,
    has_concluded,
    lock_attempt,
    mark_cancelled,
    mark_crashed,
    mark_interrupted,
    read_attempts,
)
from jobs.lifecycle.ends import keep_run, record_end, settle
from jobs.settings import PROJECT_ROOT
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.status import JobStatus
from jobs.storage import claims
from jobs.storage.events import read_events, write_event
from jobs.storage.reports import ProgressWriter, read_reports, set_report
from jobs.storage.tables import Base, engine_for, migrate
from jobs.storage.trainer_role import find_owners_at_work, make_role, renew_rights, role_name, trainer_url
from jobs.webhooks.outbox import list_deliveries, put_delivery
from sft.errors import StackError
from tests.bare_postgres import server

FACTS = {"name": "x", "parameters": {}, "tags": [], "created": "2026-01-01T00:00:00Z"}
OTHERS = sorted({*Base.metadata.tables} - {"job_reports", "job_attempts", "job_events", "webhook_deliveries"})


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


@contextmanager
def acting(secret):
    """This process has the secret of an attempt's keeper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, secret)
        yield


class Trainer:
    """A process with the trainers' role and a secret of its own, which works on a job."""

    def __init__(self, url, job_id=None):
        self.owner_url = url
        self.secret = os.urandom(32).hex()
        self.job_id = job_id or uuid4()
        self.url = trainer_url(url, None)
        with acting(self.secret):
            options = claims.connection_options(self.url)
            # One engine each: `engine_for` is the one of a process.
            self.engine = create_engine(self.url, connect_args=options, poolclass=NullPool)

    def begin(self, monkeypatch):
        monkeypatch.setattr("jobs.lifecycle.attempts.engine_for", lambda _: self.engine)
        return Attempt.begin(self.url, self.job_id)

    def run(self, statement, **values):
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return result.all() if result.returns_rows else result.rowcount

    def is_refused(self, statement, **values):
        try:
            self.run(statement, **values)
        except ProgrammingError as error:
            if isinstance(error.orig, psycopg2.errors.InsufficientPrivilege):
                return True
            raise
        return False


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


def state_of(owner, job_id):
    attempt = read_attempts(owner, [job_id])[job_id]
    report = read_reports(owner, [job_id])[job_id]
    return (attempt.number, attempt.token, report.progress, report.status, report.run,
            len(read_events(owner, job_id)), len(list_deliveries(owner, job_id)))  # fmt: skip


def test_an_attempt_from_its_begin_to_its_end(trainer, owner, monkeypatch):
    with owner.begin() as connection:
        keep_run(connection, trainer.job_id, FACTS | {"parameters": {"webhook_url": "http://a.example/"}})
    attempt = trainer.begin(monkeypatch)
    with attempt.writing() as connection:
        keep_run(connection, trainer.job_id, FACTS, {"webhook_url": "http://a.example/", "config": {}})
        write_event(connection, trainer.job_id, "phase", {"phase": "training"})
    progress = ProgressWriter(attempt.writing, trainer.job_id)
    progress({"step": 1, "total_steps": 2, "percent": 50.0, "loss": 1.0})
    progress.finish()
    attempt.beat()
    assert attempt.end(JobStatus.COMPLETED)

    report = read_reports(owner, [trainer.job_id])[trainer.job_id]
    assert (report.status, report.progress["percent"]) == ("completed", 100.0)
    assert [event.event for event in read_events(owner, trainer.job_id)] == ["phase", "step"]
    assert [delivery.status for delivery in list_deliveries(owner, trainer.job_id)] == ["completed"]
    assert read_attempts(owner, [trainer.job_id])[trainer.job_id].database_role == trainer_role(trainer)
    with pytest.raises(Superseded):
        attempt.beat()


def trainer_role(trainer):
    return make_url(trainer.url).username


def test_a_job_that_nobody_has_seen_before_is_begun(trainer, owner, monkeypatch):
    """A run of Prefect's page, of which there is no report; its next attempt is another process."""
    trainer.begin(monkeypatch).release(cause="registry_unavailable", message="away")
    assert read_attempts(owner, [trainer.job_id])[trainer.job_id].cause == "registry_unavailable"
    assert Trainer(trainer.owner_url, trainer.job_id).begin(monkeypatch).number == 2


def test_a_lost_attempt_is_followed_by_another_process_and_writes_no_more(url, owner, victim, monkeypatch):
    lost = Attempt(victim.url, victim.job_id, 1, read_attempts(owner, [victim.job_id])[victim.job_id].token)
    with owner.begin() as connection:  # as the watchdog does
        connection.execute(text("UPDATE job_attempts SET token = NULL WHERE job_id = :id"), {"id": victim.job_id})
    following = Trainer(url, victim.job_id)
    attempt = following.begin(monkeypatch)
    assert attempt.number == 2
    attempt.beat()

    monkeypatch.setattr("jobs.lifecycle.attempts.engine_for", lambda _: victim.engine)
    with pytest.raises(Superseded), lost.writing():
        pass
    assert victim.run("SELECT count(*) FROM job_reports")[0] == (0,)


def test_a_stop_before_the_attempt_is_recorded_and_what_other_processes_may_not_say_is_left_out(
    trainer, victim, owner, monkeypatch
):
    mark_interrupted(trainer.engine, trainer.job_id)
    assert read_attempts(owner, [trainer.job_id])[trainer.job_id].is_interrupted
    before = state_of(owner, victim.job_id)
    mark_interrupted(Trainer(trainer.owner_url).engine, victim.job_id)
    assert state_of(owner, victim.job_id) == before


def test_a_keeper_records_the_crash_of_its_own_process_before_and_after_it_has_begun(
    trainer, victim, owner, monkeypatch
):
    with owner.begin() as connection:
        keep_run(connection, trainer.job_id, FACTS)
    assert mark_crashed(trainer.engine, trainer.job_id, os.getpid(), "killed", "early")
    assert read_attempts(owner, [trainer.job_id])[trainer.job_id].message == "early"
    trainer.begin(monkeypatch)
    assert mark_crashed(trainer.engine, trainer.job_id, os.getpid(), "killed", "late")
    attempt = read_attempts(owner, [trainer.job_id])[trainer.job_id]
    assert (attempt.message, attempt.token) == ("late", None)
    assert has_concluded(trainer.engine, trainer.job_id)

    before = state_of(owner, victim.job_id)
    mark_crashed(Trainer(trainer.owner_url).engine, victim.job_id, os.getpid(), "killed", "a lie")
    assert state_of(owner, victim.job_id) == before


def test_a_job_that_has_ended_is_not_begun_again(trainer, owner, monkeypatch):
    mark_cancelled(owner, trainer.job_id, FACTS)
    with pytest.raises(Superseded, match="cancelled"):
        trainer.begin(monkeypatch)
    assert trainer.run("SELECT count(*) FROM job_reports")[0] == (0,)


def test_a_cancelled_job_s_process_saves_its_last_step(victim, owner):
    assert mark_cancelled(owner, victim.job_id)
    victim.run("INSERT INTO job_events (job_id, event, data) VALUES (:id, 'checkpoint', '{}')", id=victim.job_id)
    assert [event.event for event in read_events(owner, victim.job_id)] == ["step", "checkpoint"]


def test_who_begins_while_another_process_works_on_the_job_waits_for_it(url, victim, owner, monkeypatch):
    waited = []

    def pause(seconds):
        waited.append(seconds)
        with owner.begin() as connection:
            connection.execute(
                text("UPDATE job_attempts SET heartbeat_at = now() - interval '31 s' WHERE job_id = :id"),
                {"id": victim.job_id},
            )

    following = Trainer(url, victim.job_id)
    assert claiming.claim_when_free(following.engine, victim.job_id, lambda _: "claimed", pause) == "claimed"
    assert waited == [claiming.PAUSE_SECONDS]

    monkeypatch.setattr(claiming, "WAIT_SECONDS", 0.0)
    following.begin(monkeypatch)
    with pytest.raises(StackError, match="another process has been working on the job"):
        claiming.claim_when_free(Trainer(url).engine, victim.job_id, lambda _: "claimed")


def test_prefects_hook_writes_the_end_of_a_job_that_never_began(trainer, owner):
    run = FACTS | {"id": str(trainer.job_id), "state_type": "FAILED", "state": {"message": "no"}, "run_count": 1}
    with trainer.engine.begin() as connection:
        assert claims.claim(connection, trainer.job_id) is None
        assert settle(connection, run)
    assert read_reports(owner, [trainer.job_id])[trainer.job_id].status == "failed"


# -- break-outs


@pytest.mark.parametrize("table", OTHERS)
def test_other_tables_are_closed(trainer, victim, table, monkeypatch):
    trainer.begin(monkeypatch)
    column = next(iter(Base.metadata.tables[table].c)).name
    for statement in (
        f"SELECT * FROM {table}",  # noqa: S608 - names of tables
        f"INSERT INTO {table} SELECT * FROM {table}",  # noqa: S608
        f"UPDATE {table} SET {column} = NULL",  # noqa: S608
        f"DELETE FROM {table}",  # noqa: S608
        f"TRUNCATE {table}",
        f"COPY {table} TO STDOUT",
        f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
        f"CREATE TRIGGER t BEFORE INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
        f"GRANT ALL ON {table} TO PUBLIC",
        f"DROP TABLE {table}",
    ):
        assert trainer.is_refused(statement), statement


def test_no_key_can_be_made(trainer, owner, monkeypatch):
    trainer.begin(monkeypatch)
    with pytest.raises(Exception, match="permission denied"):
        create_key(trainer.engine, "mine", KeyScope.ADMIN)
    assert trainer.is_refused(
        "INSERT INTO api_keys (id, name, prefix, key_sha256, scopes) VALUES (:id, 'x', 'ty_', :hash, '{admin}')",
        id=uuid4(),
        hash=hash_key("ty_mine"),
    )
    with owner.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM api_keys")).scalar() == 0


def test_the_rows_of_a_job_at_work_are_neither_read_nor_written_by_another(trainer, victim, owner, monkeypatch):
    trainer.begin(monkeypatch)
    before, theirs = state_of(owner, victim.job_id), {"id": victim.job_id}

    for table in ("job_reports", "job_attempts", "job_events", "webhook_deliveries"):
        assert trainer.run(f"SELECT count(*) FROM {table} WHERE job_id = :id", **theirs) == [(0,)], table  # noqa: S608
    assert trainer.run("UPDATE job_reports SET progress = '{}' WHERE job_id = :id", **theirs) == 0
    assert trainer.run("UPDATE job_attempts SET token = NULL WHERE job_id = :id", **theirs) == 0
    for statement in (
        "INSERT INTO job_reports (job_id, progress) VALUES (:id, '{}') "
        "ON CONFLICT (job_id) DO UPDATE SET progress = '{}'",
        "INSERT INTO job_events (job_id, event, data) VALUES (:id, 'end', '{}')",
        "INSERT INTO job_attempts (job_id, number, is_interrupted, settled, lost) VALUES (:id, 9, false, 0, 0) "
        "ON CONFLICT (job_id) DO UPDATE SET number = 9",
        "INSERT INTO webhook_deliveries (id, job_id, event_key, status, url, payload, state, attempts, expires_at) "
        "SELECT gen_random_uuid(), :id, 'x', 'x', 'http://x', '{}', 'pending', '[]', now()",
        "DELETE FROM job_events WHERE job_id = :id",
    ):
        assert trainer.is_refused(statement, **theirs), statement
    assert trainer.run("SELECT tuneyard_claim(:id)", **theirs) == [("the secret is of another job",)]
    another = Trainer(trainer.owner_url)
    assert another.run("SELECT tuneyard_claim(:id)", **theirs) == [("busy",)]
    assert state_of(owner, victim.job_id) == before


def test_of_its_own_rows_too_it_does_only_what_a_job_needs(trainer, victim, owner, monkeypatch):
    with owner.begin() as connection:
        keep_run(connection, trainer.job_id, FACTS)
        write_event(connection, trainer.job_id, "step", {"step": 1})
    trainer.begin(monkeypatch)
    mine = {"id": trainer.job_id, "other": victim.job_id}
    delivery = (
        "INSERT INTO webhook_deliveries (id, job_id, event_key, status, url, payload, state, attempts, expires_at) "
        "SELECT gen_random_uuid(), :id, 'x', 'x', 'http://x', jsonb_build_object('job_id', CAST(:{} AS text)), '{}', "
        "'[]', now()"
    )
    for statement in (
        "DELETE FROM job_events WHERE job_id = :id",
        "UPDATE job_events SET data = '{}' WHERE job_id = :id",
        "INSERT INTO job_events (id, job_id, event, data) VALUES (1, :id, 'x', '{}')",
        "DELETE FROM job_reports WHERE job_id = :id",
        "UPDATE job_reports SET run_id = :other WHERE job_id = :id",
        "UPDATE job_reports SET job_id = :other WHERE job_id = :id",
        "UPDATE webhook_deliveries SET state = 'delivered' WHERE job_id = :id",
        delivery.format("other", "pending"),
        delivery.format("id", "delivered"),
    ):
        used = {name: value for name, value in mine.items() if f":{name}" in statement}
        assert trainer.is_refused(statement, **used), statement
    trainer.run(delivery.format("id", "pending"), id=trainer.job_id)


def test_rights_can_not_be_taken(trainer, owner, url, monkeypatch):
    trainer.begin(monkeypatch)
    superuser = make_url(url).username
    for statement in (
        f"SET ROLE {superuser}",
        f"SET SESSION AUTHORIZATION {superuser}",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE mine (a int)",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine SUPERUSER",
        f"ALTER ROLE {role_name(url)} BYPASSRLS",
        f"GRANT {superuser} TO {role_name(url)}",
        "CREATE EXTENSION dblink",
        "CREATE POLICY mine ON job_reports USING (true)",
        "DROP POLICY tuneyard_trainer ON job_reports",
        "CREATE OR REPLACE FUNCTION tuneyard_claimed_job() RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "SELECT pg_read_file('postgresql.conf')",
        "UPDATE alembic_version SET version_num = '9999'",
        "ALTER DATABASE postgres SET search_path = 'pg_temp'",
        "SELECT pg_terminate_backend(pg_backend_pid()) FROM pg_authid",
    ):
        assert trainer.is_refused(statement), statement
    assert trainer.run("RESET ROLE; SELECT CAST(current_user AS text)") == [(role_name(url),)]
    with pytest.raises(Exception, match="row-level security"):
        trainer.run("SET row_security = off; SELECT * FROM job_reports")


def test_a_search_path_and_temporary_objects_lead_the_functions_nowhere_else(trainer, victim, monkeypatch):
    trainer.begin(monkeypatch)
    shadow = (
        "SET search_path = pg_temp, public; "
        "CREATE TEMP TABLE job_claims (job_id uuid, secret_sha256 bytea); "
        "INSERT INTO job_claims VALUES (:id, sha256(convert_to(current_setting('tuneyard.secret'), 'UTF8'))); "
        "CREATE TEMP TABLE job_attempts (job_id uuid, token uuid, heartbeat_at timestamptz); "
        "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'; "
        "CREATE FUNCTION pg_temp.coalesce_(uuid) RETURNS uuid LANGUAGE sql AS 'SELECT $1'; "
    )
    found = trainer.run(shadow + "SELECT tuneyard_claimed_job(), tuneyard_claim(:id)", id=victim.job_id)
    assert found == [(trainer.job_id, "the secret is of another job")]
    assert trainer.run("SET search_path = pg_temp, public; SELECT job_id FROM public.job_reports WHERE job_id = :id",
                       id=victim.job_id) == []  # fmt: skip


def test_no_secret_is_seen_by_other_sessions_of_the_role(trainer, victim):
    """PostgreSQL shows to a role the texts of all queries of that role."""
    held = victim.engine.connect()
    held.execute(select(1))
    seen = "\n".join(row[0] or "" for row in trainer.run("SELECT query FROM pg_stat_activity"))
    settings = trainer.run("SELECT name, setting FROM pg_settings")
    held.close()
    assert "SELECT 1" in seen
    assert victim.secret not in seen + repr(settings)
    for guess in ("", "x" * 31, victim.job_id.hex[:31]):
        trainer.engine.dispose()
        found = trainer.run(f"SET tuneyard.secret = '{guess}'; SELECT tuneyard_claim(:id)", id=uuid4())
        assert found == [("no secret",)]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_claim_waits_for_an_attempt_that_is_begun_meanwhile(url, owner, monkeypatch, is_first):
    """Otherwise it would take the job from the process that begins it."""
    job_id = uuid4()
    if not is_first:
        Trainer(url, job_id).begin(monkeypatch).release()
    first, second = Trainer(url, job_id), Trainer(url, job_id)
    said = []
    with first.engine.begin() as connection:
        assert claims.claim(connection, job_id) is None
        thread = threading.Thread(target=lambda: said.append(second.run("SELECT tuneyard_claim(:id)", id=job_id)))
        thread.start()
        thread.join(0.5)
        assert said == []
        lock_attempt(connection, job_id)
        connection.execute(text("UPDATE job_attempts SET token = gen_random_uuid(), heartbeat_at = now()"))
    thread.join()
    assert said == [[("busy",)]]
    assert first.run("SELECT count(*) FROM job_attempts") == [(1,)]
    assert second.run("SELECT count(*) FROM job_attempts") == [(0,)]


def test_a_claim_that_is_refused_leaves_nothing(url, owner, trainer):
    at_work = (
        "INSERT INTO job_attempts (job_id, number, is_interrupted, settled, lost, token, heartbeat_at) "
        "VALUES (:id, 1, false, 0, 0, gen_random_uuid(), now())"
    )
    with owner.begin() as connection:  # of a process that owns the database, without a claim
        connection.execute(text(at_work), {"id": trainer.job_id})
    assert trainer.run("SELECT tuneyard_claim(:id)", id=trainer.job_id) == [("busy",)]
    mark_cancelled(owner, trainer.job_id, FACTS)
    assert trainer.run("SELECT tuneyard_claim(:id)", id=trainer.job_id) == [("cancelled",)]
    with owner.connect() as connection:
        wanted = text("SELECT count(*) FROM job_claims WHERE job_id = :id")
        assert connection.execute(wanted, {"id": trainer.job_id}).scalar() == 0


# -- setting it up


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
    with maker.connect() as connection:  # as the watchdog does with a lost trainer's
        ended = connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'made_trainer'")
        )
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
