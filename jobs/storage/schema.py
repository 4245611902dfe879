"""Migrates the schema of Tuneyard's database, and refuses one of a newer version.

The first process that connects (API, watchdog, job or command line) migrates an older schema: one process at a time,
in one transaction. A newer schema, which this code would misread, is refused.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import Connection, Engine, create_engine, event, func, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from jobs.errors import SchemaMismatch
from jobs.storage.trainer_role import renew_rights
from sft.errors import StackError

logger = logging.getLogger(__name__)

SCHEMA_LOCK = 7_415_001  # PostgreSQL advisory lock: one process migrates at a time
LOCK_SECONDS = 60.0  # for another process that migrates, or a table locked by another transaction
CHECKS_CLIENT = 140000  # from this version on a server can detect that its client is gone
MIGRATIONS = Path(__file__).parent / "migrations"
_QUERY = "SELECT version_num FROM alembic_version"


@cache
def known_revisions() -> tuple[str, ...]:
    """Every revision this code knows, in order: the numbers of the migrations' files."""
    return tuple(sorted(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py")))


def keep_current(engine: Engine, lock_seconds: float = LOCK_SECONDS) -> Engine:
    """Make the engine connect only to a current schema, migrating it if needed; returns the engine.

    Args:
        lock_seconds: how long to wait for others.
    """
    url = engine.url.render_as_string(hide_password=False)

    @event.listens_for(engine, "connect")
    def check(connection: Any, _record: object) -> None:
        if _read_revisions(connection) != known_revisions()[-1:]:
            migrate(url, lock_seconds)

    return engine


def ensure_current(engine: Engine, lock_seconds: float = LOCK_SECONDS) -> None:
    """Check the schema again, in a process that already has connections. Raises as `migrate`."""
    with engine.connect() as connection:
        is_current = _read_revisions(connection.connection.dbapi_connection) == known_revisions()[-1:]
    if not is_current:
        migrate(engine.url.render_as_string(hide_password=False), lock_seconds)


def migrate(database_url: str, lock_seconds: float = LOCK_SECONDS) -> None:
    """Migrate the schema; safe to call from several processes at once.

    If the process is killed, the server rolls the migration back within a second.

    Raises:
        StackError: another process has been migrating for longer than `lock_seconds`.
        SchemaMismatch: the schema is newer, or the migration failed and was rolled back.
    """
    engine = create_engine(database_url)
    try:
        with engine.connect() as connection:
            _prepare(connection, lock_seconds)
            try:
                _upgrade(connection)
            finally:
                if not connection.invalidated:  # the lock ends with its connection
                    connection.rollback()
                    connection.execute(func.pg_advisory_unlock(SCHEMA_LOCK).select())
                    connection.commit()
    finally:
        engine.dispose()


def _prepare(connection: Connection, lock_seconds: float) -> None:
    """Take the lock for the life of the connection."""
    server: Any = connection.connection.dbapi_connection
    if server.server_version >= CHECKS_CLIENT:
        connection.execute(text("SET client_connection_check_interval = '1s'"))
    connection.execute(text(f"SET lock_timeout = '{int(lock_seconds * 1000)}ms'"))
    connection.commit()
    try:
        connection.execute(func.pg_advisory_lock(SCHEMA_LOCK).select())
    except OperationalError as error:
        if not isinstance(error.orig, psycopg2.errors.LockNotAvailable):
            raise
        raise StackError(
            f"another process has been migrating the database's schema for {lock_seconds:.0f} s; try again"
        ) from error
    connection.commit()


def _upgrade(connection: Connection) -> None:
    """Run all migrations in one transaction. The caller holds the lock."""
    found = _read_revisions(connection.connection.dbapi_connection)
    wanted = known_revisions()[-1]
    if found == (wanted,):
        return
    if not set(found) <= {*known_revisions()}:
        raise SchemaMismatch(
            f"the database's schema is {', '.join(found)}, and this version of Tuneyard supports {wanted} at most: it "
            "was last used by a newer version. Install that version, or restore the database from a backup"
        )
    import alembic.command  # takes a fifth of a second, which jobs can do without
    import alembic.config
    from alembic.util import CommandError

    config = alembic.config.Config()
    # `%` is doubled, as it begins a reference to another option in this file format.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        alembic.command.upgrade(config, "head")
        renew_rights(connection, connection.engine.url.render_as_string(hide_password=False))
        connection.commit()
    except (SQLAlchemyError, CommandError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise SchemaMismatch(
            f"the database's schema could not be migrated from {', '.join(found) or 'nothing'} to {wanted} ({reason}); "
            "nothing has changed. Fix the problem and start again"
        ) from error
    logger.info("The database's schema was migrated from %s to %s", ", ".join(found) or "nothing", wanted)


def _read_revisions(connection: Any) -> tuple[str, ...]:
    """Read the database's revisions over a DBAPI connection; empty without a schema."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(_QUERY)
            return tuple(str(revision) for (revision,) in cursor.fetchall())
    except psycopg2.errors.UndefinedTable:
        return ()
    finally:
        connection.rollback()
