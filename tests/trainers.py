"""A process with the trainers' database role, as tests are one."""

import os
from contextlib import contextmanager
from uuid import uuid4

import psycopg2
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from jobs.job_secret import VARIABLE
from jobs.lifecycle.attempts import (
    Attempt,
    read_attempts,
)
from jobs.storage import claims
from jobs.storage.events import read_events
from jobs.storage.reports import read_reports
from jobs.storage.trainer_role import trainer_url
from jobs.webhooks.outbox import list_deliveries

FACTS = {"name": "x", "parameters": {}, "tags": [], "created": "2026-01-01T00:00:00Z"}


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


def state_of(owner, job_id):
    attempt = read_attempts(owner, [job_id])[job_id]
    report = read_reports(owner, [job_id])[job_id]
    return (attempt.number, attempt.token, report.progress, report.status, report.run,
            len(read_events(owner, job_id)), len(list_deliveries(owner, job_id)))  # fmt: skip
