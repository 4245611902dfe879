"""What a job's process tries in vain with the trainers' role in a real PostgreSQL."""

import threading
from uuid import uuid4

import pytest
from sqlalchemy import make_url, select, text

from jobs.clients.keys import KeyScope, create_key, hash_key
from jobs.lifecycle.attempts import (
    lock_attempt,
    mark_cancelled,
)
from jobs.lifecycle.ends import keep_run
from jobs.storage import claims
from jobs.storage.events import write_event
from jobs.storage.tables import Base
from jobs.storage.trainer_role import role_name
from tests.trainers import FACTS, Trainer, state_of

OTHERS = sorted({*Base.metadata.tables} - {"job_reports", "job_attempts", "job_events", "webhook_deliveries"})


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
