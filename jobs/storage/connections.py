"""Translates errors of Tuneyard's own database, or waits for it."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import (
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from tenacity import retry_if_exception_type

from jobs.network.deadlines import breaker_for, call_deadline
from jobs.network.failures import NO_CONNECTION, NO_RESPONSE
from jobs.retrying import patient
from jobs.storage.bounded_postgres import PostgresTimeout
from sft.errors import StackError

logger = logging.getLogger(__name__)

DATABASE = "Tuneyard's database"
PATIENCE_SECONDS = 120.0  # a restart of PostgreSQL takes seconds
PAUSES = (0.5, 0.5)
_CONNECTION_ERRORS = (OperationalError, InterfaceError, DisconnectionError, PendingRollbackError)
_CONNECTION_CODES = ("", "08", "53", "57")  # PostgreSQL's classes: connections, lack of resources, the operator


class DatabaseTimeout(StackError):
    """Tuneyard's database did not respond in time."""


@contextmanager
def autocommit(engine: Engine) -> Iterator[Connection]:
    """A connection in autocommit mode: a read takes one round trip to the server instead of three."""
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise StackError for the database's errors; all calls in the block share one deadline."""
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
    return f"can't be reached ({describe_database_failure(error)}); see `tuneyard status`"


def describe_database_failure(error: Exception) -> str:
    """Describe a failed call to the database in a few words, for clients. What is unexpected is named in the log alone.

    Args:
        error: SQLAlchemy's.
    """
    cause = getattr(error, "orig", None)
    if isinstance(cause, PostgresTimeout):
        return NO_RESPONSE
    if isinstance(error, PoolTimeout):
        return "all connections to it are in use"
    code = getattr(cause, "pgcode", None) or ""  # none without a response of the server
    if isinstance(error, _CONNECTION_ERRORS) and code[:2] in _CONNECTION_CODES:
        return NO_CONNECTION
    logger.warning("The database refused a statement: %s: %s", type(error).__name__, error)
    return "it refused a statement; the log names it"


@contextmanager
def watch_database(url: str) -> Iterator[None]:
    """`translate_errors` with the database's circuit breaker: fails at once while the server does not respond."""
    with breaker_for(DATABASE, url, DatabaseTimeout).watch(), translate_errors():
        yield


@contextmanager
def wait_for_database(engine: Engine, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[Connection]:
    """Open a transaction, waiting for the database: for a job's process, which should not fail.

    Raises StackError if it stays down too long. Errors inside the transaction are raised unchanged.
    """
    with _connect(engine, patience_seconds) as connection, connection.begin():
        yield connection


def _connect(engine: Engine, patience_seconds: float) -> Connection:
    tell = functools.partial(logger.warning, "The database can't be reached (%s); waiting for it")
    try:
        return patient(retry_if_exception_type(DBAPIError), patience_seconds, PAUSES, tell)(engine.connect)
    except DBAPIError as error:
        raise StackError(f"{DATABASE} has been down for {patience_seconds:.0f} s") from error
