"""PostgreSQL connections whose calls end by their deadline, whether the server is slow, stopped or gone.

PostgreSQL's `statement_timeout` has no effect on a server that is stopped, and libpq waits without limit.
"""

import functools
import select
import time
from typing import Any

import psycopg2
from psycopg2 import extensions
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError

from jobs.network.deadlines import READ_SECONDS, allowed_seconds, seconds_left
from jobs.storage.keepalives import keep_alive
from jobs.storage.schema import CHECKS_CLIENT, keep_current

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 1.0  # a connection used within this time is not pinged again


class PostgresTimeout(psycopg2.OperationalError):  # type: ignore[misc]  # psycopg2 has no types
    """The server did not respond in time."""


class BoundedConnection(extensions.connection):  # type: ignore[misc]  # psycopg2 has no types
    """A connection each of whose statements may take `allowed_seconds`."""


@functools.cache
def bounded_engine_for(database_url: str) -> Engine:
    """The process's connection pool for requests; the server cancels the query of a client that has gone."""
    install()
    engine = create_engine(
        database_url,
        pool_size=5,
        max_overflow=15,
        pool_timeout=READ_SECONDS,
        connect_args={"connection_factory": BoundedConnection},
    )
    event.listen(engine, "connect", _watch_client)
    _ping_idle(engine)
    return keep_alive(keep_current(engine, READ_SECONDS))


@functools.cache
def install() -> None:
    """Have psycopg2 wait by `_wait` in this process, for every connection."""
    extensions.set_wait_callback(_wait)


def _ping_idle(engine: Engine) -> None:
    """What `pool_pre_ping` does, but only for connections idle for longer than `IDLE_SECONDS`.

    A request uses several connections one after the other, and a ping before each took a tenth of its time.
    """

    @event.listens_for(engine, "checkin")
    def note(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(connection: Any, record: Any, _proxy: object) -> None:
        if time.monotonic() - record.info.get("used_at", 0.0) <= IDLE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg2.Error as error:
            if engine.dialect.is_disconnect(error, connection, None):
                raise InvalidatePoolError from error
            raise


def _watch_client(connection: Any, _record: object) -> None:
    if connection.server_version >= CHECKS_CLIENT:
        with connection.cursor() as cursor:
            cursor.execute("SET client_connection_check_interval = '1s'")
        connection.commit()


def _wait(connection: Any) -> None:
    """psycopg2's callback: until the connection has what it waits for. An error closes the connection."""
    limit = None
    if isinstance(connection, BoundedConnection):
        limit = min(allowed_seconds(), max(0.0, seconds_left()))
    elif connection.status == extensions.STATUS_SETUP:  # libpq's connect_timeout does not count here
        limit = CONNECT_SECONDS
    deadline = None if limit is None else time.monotonic() + limit
    while (state := connection.poll()) != extensions.POLL_OK:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN if state == extensions.POLL_READ else select.POLLOUT)
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and (left <= 0 or not poller.poll(left * 1000)):
            raise PostgresTimeout(f"PostgreSQL has not responded for {limit:.0f} s")
        if left is None:
            poller.poll()
