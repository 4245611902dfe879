"""The secret by which a job's process claims the right to write its job's rows (`jobs.storage.trainer_role`).

PostgreSQL gets it in the connection's options, which no other session sees; the text of a query would be shown to all
sessions of the same role.
"""

import os
from uuid import UUID

import psycopg2
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from jobs.job_secret import VARIABLE

PARAMETER = "tuneyard.secret"
BUSY = "busy"

_IS_LIMITED = text("SELECT row_security_active('job_attempts')")
_CLAIM = text("SELECT tuneyard_claim(:run_id)")


def connection_options(database_url: str) -> dict[str, str]:
    """psycopg2's arguments that present the secret; empty if this process has no secret."""
    if not (secret := os.environ.get(VARIABLE)):
        return {}
    own = make_url(database_url).query.get("options", "")
    return {"options": f"{own} -c {PARAMETER}={secret}".strip()}


def is_limited(connection: Connection) -> bool:
    """Whether this connection has the trainers' role, to which row-level security applies."""
    return bool(connection.execute(_IS_LIMITED).scalar())


def claim(connection: Connection, run_id: UUID) -> str | None:
    """Claim the run's job for this process's secret; None if it may write the job's rows.

    Otherwise the job's final status, `busy` while another process works on it, or why there is no claim. A connection
    that owns the database may write everything.
    """
    if not is_limited(connection):
        return None
    return connection.execute(_CLAIM, {"run_id": run_id}).scalar()


def is_denied(error: SQLAlchemyError) -> bool:
    """Whether the error means that this process's database role lacks a right."""
    return isinstance(getattr(error, "orig", None), psycopg2.errors.InsufficientPrivilege)
