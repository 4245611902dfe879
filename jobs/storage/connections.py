"""Translate errors of Tuneyard's own database, or wait for it."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from tenacity import retry_if_exception_type

from jobs.network.deadlines import breaker_for, call_deadline
from jobs.retrying import patient
from jobs.storage.bounded_postgres import PostgresTimeout
from sft.errors import StackError

logger = logging.getLogger(__name__)

DATABASE = "Tuneyard's database"
PATIENCE_SECONDS = 120.0  # a restart of PostgreSQL takes seconds
PAUSES = (0.5, 0.5)


class DatabaseTimeout(StackError):
    """Tuneyard's database has not answered in time."""


@contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    """A connection whose statements each commit by themselves: a read is one turn with the server instead of three."""
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise StackError for whatever the database raises; what requests wait for has one deadline in all."""
    try:
        with call_deadline():
            yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None)
        raise (DatabaseTimeout if isinstance(cause, PostgresTimeout) else StackError)(
            f"{DATABASE} {_explain(error, cause)}"
        ) from error


def _explain(error: SQLAlchemyError, cause: BaseException | None) -> str:
    if isinstance(cause, psycopg2.errors.DiskFull):
        return "has no space left on its disk; nothing was changed. Free some"
    if isinstance(cause, psycopg2.errors.ReadOnlySqlTransaction):
        return "takes no writes now; nothing was changed. It may be a replica (see TUNEYARD_DATABASE_URL)"
    return f"can't be reached ({type(error).__name__}); see `tuneyard status`"


@contextmanager
def look_at_database(url: str) -> Iterator[None]:
    """As `translate_errors`, and without waiting for a server that has just been found not to answer."""
    with breaker_for(DATABASE, url, DatabaseTimeout).watch(), translate_errors():
        yield


@contextmanager
def wait_for_database(engine: Engine, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[Connection]:
    """A transaction, for those who would rather wait for the database than fail: a job's process.

    Raises StackError when it stays away so long. What fails within the transaction is raised as it is.
    """
    with _connect(engine, patience_seconds) as connection, connection.begin():
        yield connection


def _connect(engine: Engine, patience_seconds: float) -> Connection:
    tell = functools.partial(logger.warning, "The database can't be reached (%s); waiting for it")
    try:
        return patient(retry_if_exception_type(DBAPIError), patience_seconds, PAUSES, tell)(engine.connect)
    except DBAPIError as error:
        raise StackError(f"{DATABASE} has not been there for {patience_seconds:.0f} s") from error
