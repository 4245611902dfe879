"""The database role of trainers: with it a job's process writes its own job's rows and nothing else.

The role may read and write rows of the tables in `_RIGHTS`, limited by row-level security to the job that its
connection's secret has claimed. `tuneyard_claim` grants a claim on a job that has not ended and that no other process
works on. Keys, saved configurations, idempotency keys and all other tables are closed to it.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import encrypt_password
from sqlalchemy import Connection, Engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from jobs.storage.claims import PARAMETER
from sft.errors import StackError

LEAST_SECRET = 32  # characters
WORKING_SECONDS = 30  # since the last heartbeat of a process that works on a job
LOCK_TIMEOUT = "10s"
NAME_BYTES = 63  # of PostgreSQL

_CLAIM = """
CREATE OR REPLACE FUNCTION {schema}.tuneyard_claim(wanted uuid) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given text := current_setting('{parameter}', true);
    digest bytea;
    mine uuid;
    refusal text;
    is_new boolean;
BEGIN
    IF length(coalesce(given, '')) < {least_secret} THEN RETURN 'no secret'; END IF;
    digest := sha256(convert_to(given, 'UTF8'));
    SELECT c.job_id INTO mine FROM {schema}.job_claims c WHERE c.secret_sha256 = digest;
    IF FOUND THEN
        IF mine = wanted OR EXISTS (
            SELECT FROM {schema}.job_reports r WHERE r.job_id = mine AND r.run_id = wanted
        ) THEN RETURN NULL; END IF;
        RETURN 'the secret is of another job';
    END IF;
    mine := coalesce((SELECT r.job_id FROM {schema}.job_reports r WHERE r.run_id = wanted), wanted);
    -- This row is a lock: who claims a job waits for a process that claims and begins it, and looks only then.
    INSERT INTO {schema}.job_claims (job_id, secret_sha256) VALUES (mine, digest) ON CONFLICT (job_id) DO NOTHING;
    is_new := FOUND;
    PERFORM FROM {schema}.job_claims c WHERE c.job_id = mine FOR UPDATE;
    PERFORM FROM {schema}.job_attempts a WHERE a.job_id = mine FOR UPDATE;
    SELECT r.status INTO refusal FROM {schema}.job_reports r WHERE r.job_id = mine;
    IF refusal IS NULL AND EXISTS (
        SELECT FROM {schema}.job_attempts a WHERE a.job_id = mine AND a.token IS NOT NULL
        AND a.heartbeat_at > clock_timestamp() - interval '{working_seconds} seconds'
    ) THEN refusal := 'busy'; END IF;
    IF refusal IS NULL THEN
        UPDATE {schema}.job_claims c SET secret_sha256 = digest, claimed_at = now() WHERE c.job_id = mine;
    ELSIF is_new THEN
        DELETE FROM {schema}.job_claims c WHERE c.job_id = mine;
    END IF;
    RETURN refusal;
END $$
"""
_CLAIMED = """
CREATE OR REPLACE FUNCTION {schema}.tuneyard_claimed_job() RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT job_id FROM {schema}.job_claims
    WHERE secret_sha256 = sha256(convert_to(coalesce(current_setting('{parameter}', true), ''), 'UTF8'))
$$
"""


@dataclass(frozen=True)
class Rights:
    """What trainers may do with the rows of their job in one table.

    Attributes:
        insert: Columns of new rows; all but `closed` if None.
        closed: Columns that are not written.
        check: A further condition on written rows.
    """

    is_changed: bool = False
    insert: tuple[str, ...] | None = None
    closed: tuple[str, ...] = ()
    check: str = "true"


_RIGHTS = {
    "job_reports": Rights(is_changed=True, closed=("run_id",)),  # by which another job's run would become this one's
    "job_attempts": Rights(is_changed=True),
    "job_events": Rights(insert=("job_id", "event", "data")),
    "webhook_deliveries": Rights(check="payload ->> 'job_id' = job_id::text AND state = 'pending'"),
}


def role_name(database_url: str) -> str:
    """The name of the database's trainer role."""
    name = f"{make_url(database_url).database}_trainer"
    if len(name.encode()) > NAME_BYTES:
        raise StackError(f"the database's name is too long for a role {name}; use one of at most 55 bytes")
    return name


def trainer_url(database_url: str, password: str | None) -> str:
    """The database's URL for trainers."""
    url = make_url(database_url).set(username=role_name(database_url), password=password)
    return url.render_as_string(hide_password=False)


def make_role(engine: Engine, database_url: str, with_password: bool, is_renewed: bool = False) -> str | None:
    """Create the role unless it exists, and give it its rights.

    Args:
        with_password: The role gets a random password.
        is_renewed: An existing role gets a new one.

    Returns:
        The new password; None if the role has none, or kept its own.

    Raises:
        StackError: this connection may not do so, or the role could do more than it should.
    """
    role = role_name(database_url)
    password = None
    try:
        with engine.begin() as connection:
            is_new = not _exists(connection, role)
            if is_new:
                _run(connection, "CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS", role=role)
            if with_password and (is_new or is_renewed):
                password = secrets.token_urlsafe(24)
                _set_password(connection, role, password)
            _apply(connection, role)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StackError(
            f"the role {role} can't be set up ({reason}); connect as the database's owner with the right CREATEROLE, "
            f"or have `CREATE ROLE {role} LOGIN PASSWORD '…'` run by somebody who has it, and repeat this"
        ) from error
    return password


def renew_rights(connection: Connection, database_url: str) -> None:
    """Give an existing role its rights, after a migration. Does nothing without a role."""
    role = f"{make_url(database_url).database}_trainer"
    if _exists(connection, role):
        _apply(connection, role)


def find_owners_at_work(connection: Connection, days: int = 1) -> list[str]:
    """Hosts whose newest attempts at jobs connected with a role that may write API keys."""
    wanted = text(
        "SELECT DISTINCT host FROM job_attempts JOIN pg_roles ON rolname = database_role "
        "WHERE heartbeat_at > now() - make_interval(days => :days) AND has_table_privilege(oid, 'api_keys', 'INSERT') "
        "ORDER BY host"
    )
    return [host for (host,) in connection.execute(wanted, {"days": days})]


def _apply(connection: Connection, role: str) -> None:
    """Set the rights, unless they are already right: setting them locks each table for a moment."""
    schema = connection.execute(text("SELECT current_schema()")).scalar_one()
    columns = {table: _read_columns(connection, schema, table) for table in _RIGHTS}
    database = connection.execute(text("SELECT current_database()")).scalar_one()
    connect = sql.SQL("GRANT CONNECT ON DATABASE {} TO {}")  # which PUBLIC may have lost
    statements = [connect.format(sql.Identifier(database), sql.Identifier(role)), *_statements(schema, role, columns)]
    stamp = hashlib.sha256("\n".join(statement.as_string(_raw(connection)) for statement in statements).encode())
    mark = f"tuneyard {role} {stamp.hexdigest()}"
    kept = text("SELECT obj_description(to_regprocedure(:name), 'pg_proc')")
    quoted = sql.Identifier(schema).as_string(_raw(connection))
    if connection.execute(kept, {"name": f"{quoted}.tuneyard_claim(uuid)"}).scalar() == mark:
        return
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
    for statement in statements:
        _execute(connection, statement)
    if connection.execute(text("SELECT pg_has_role(:role, 'MEMBER WITH ADMIN OPTION')"), {"role": role}).scalar():
        _run(connection, "GRANT {role} TO CURRENT_USER", role=role)  # who may then end a lost trainer's connections
    comment = sql.SQL("COMMENT ON FUNCTION {}.tuneyard_claim(uuid) IS {}")
    _execute(connection, comment.format(sql.Identifier(schema), sql.Literal(mark)))
    _check(connection, schema, role)


def _statements(schema: str, role: str, columns: dict[str, list[str]]) -> list[sql.Composable]:
    names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
    values = {
        "parameter": sql.SQL(PARAMETER),
        "least_secret": sql.SQL(str(LEAST_SECRET)),
        "working_seconds": sql.SQL(str(WORKING_SECONDS)),
    }
    made = [sql.SQL(_CLAIM).format(**names, **values), sql.SQL(_CLAIMED).format(**names, **values)]
    functions = "FUNCTION {schema}.tuneyard_claim(uuid), {schema}.tuneyard_claimed_job()"
    plain = [
        "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}",
        "REVOKE ALL ON ALL SEQUENCES IN SCHEMA {schema} FROM {role}",
        f"REVOKE ALL ON {functions} FROM PUBLIC",
        "GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT EXECUTE ON {functions} TO {{role}}",
        "GRANT SELECT ON {schema}.alembic_version TO {role}",
    ]
    made += [sql.SQL(statement).format(**names) for statement in plain]
    for table, rights in _RIGHTS.items():
        made += _table_statements(names | {"table": sql.Identifier(table)}, role, rights, columns[table])
    return made


def _table_statements(
    names: dict[str, sql.Composable], role: str, rights: Rights, columns: list[str]
) -> list[sql.Composable]:
    written = [column for column in columns if column not in rights.closed]
    lists = {"changed": _list(written), "inserted": _list(rights.insert or written), "role_name": sql.Literal(role)}
    is_mine = "job_id = (SELECT {schema}.tuneyard_claimed_job())"
    is_other = "NOT pg_has_role(current_user, {role_name}, 'MEMBER')"  # roles of the user's are not limited by this
    statements = [
        "GRANT SELECT ON {schema}.{table} TO {role}",
        "GRANT INSERT ({inserted}) ON {schema}.{table} TO {role}",
        *(["GRANT UPDATE ({changed}) ON {schema}.{table} TO {role}"] if rights.is_changed else []),
        "ALTER TABLE {schema}.{table} ENABLE ROW LEVEL SECURITY",
        "DROP POLICY IF EXISTS tuneyard_trainer ON {schema}.{table}",
        "DROP POLICY IF EXISTS tuneyard_others ON {schema}.{table}",
        f"CREATE POLICY tuneyard_trainer ON {{schema}}.{{table}} TO {{role}} USING ({is_mine}) "
        f"WITH CHECK ({is_mine} AND {rights.check})",
        f"CREATE POLICY tuneyard_others ON {{schema}}.{{table}} USING ({is_other}) WITH CHECK ({is_other})",
    ]
    return [sql.SQL(statement).format(**names, **lists) for statement in statements]


def _list(columns: tuple[str, ...] | list[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _read_columns(connection: Connection, schema: str, table: str) -> list[str]:
    wanted = text(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = :schema AND table_name = :table "
        "ORDER BY ordinal_position"
    )
    return [name for (name,) in connection.execute(wanted, {"schema": schema, "table": table})]


def _check(connection: Connection, schema: str, role: str) -> None:
    """Check that the role was not granted more rights. Raises StackError."""
    wanted = text(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, has_schema_privilege(:role, :schema, 'CREATE'), "
        "has_table_privilege(:role, 'api_keys', 'SELECT, INSERT, UPDATE, DELETE') FROM pg_roles WHERE rolname = :role"
    )
    found = connection.execute(wanted, {"role": role, "schema": schema}).one()
    names = ("is a superuser", "bypasses row-level security", "may create roles", "may create objects", "may use keys")
    if problems := [name for name, is_so in zip(names, found, strict=True) if is_so]:
        remedy = f"; `REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC` helps" if "may create objects" in problems else ""
        raise StackError(f"the role {role} {', '.join(problems)}{remedy}; take that from it and repeat this")


def _exists(connection: Connection, role: str) -> bool:
    wanted = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)")
    return bool(connection.execute(wanted, {"role": role}).scalar())


def _set_password(connection: Connection, role: str, password: str) -> None:
    """Set the password by its SCRAM verifier, so that no log of the server has it."""
    verifier = encrypt_password(password, role, _raw(connection), "scram-sha-256")
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))
    _execute(connection, statement)


def _run(connection: Connection, statement: str, **names: str) -> None:
    _execute(connection, sql.SQL(statement).format(**{name: sql.Identifier(value) for name, value in names.items()}))


def _execute(connection: Connection, statement: sql.Composable) -> None:
    connection.exec_driver_sql(statement.as_string(_raw(connection)).replace("%", "%%"))


def _raw(connection: Connection) -> Any:
    return connection.connection.dbapi_connection
