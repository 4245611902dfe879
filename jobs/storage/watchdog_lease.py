"""Reads which watchdog is active, from its lease in the database."""

from dataclasses import dataclass
from typing import Any

import psycopg2

# Advisory locks of two numbers, this and a term of the lease: held by the connection of that term's holder.
TERM_LOCK = 7_415_003

_READ = f"""
SELECT host, pid, EXTRACT(EPOCH FROM clock_timestamp() - looked_at), expires_at > clock_timestamp(), EXISTS (
    SELECT FROM pg_locks JOIN pg_database ON database = pg_database.oid
    WHERE locktype = 'advisory' AND classid = {TERM_LOCK} AND objid = term::oid AND objsubid = 2 AND granted
      AND datname = current_database())
FROM watchdog_lease
"""  # noqa: S608 - a constant


@dataclass(frozen=True)
class LeaseHolder:
    """The active watchdog, or the last one."""

    host: str
    pid: int
    idle_seconds: float  # since it has finished a task
    is_renewing: bool  # its lease has not expired
    is_connected: bool

    @property
    def is_active(self) -> bool:
        """Whether it is active: a frozen one keeps its connection, and a killed one its lease, for a while."""
        return self.is_renewing and self.is_connected


def read_holder(connection: Any) -> LeaseHolder | None:
    """Read the lease over a DBAPI connection; None if there has been no watchdog yet. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        try:
            cursor.execute(_READ)
        except psycopg2.errors.UndefinedTable:  # an older schema
            return None
        row = cursor.fetchone()
    return row and LeaseHolder(row[0], row[1], float(row[2]), row[3], row[4])
