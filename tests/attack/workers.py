"""A worker's process that means to write for another's job, with what it holds of its own."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from uuid import UUID, uuid4

from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

from jobs.lifecycle.attempts import Attempt, Superseded
from jobs.lifecycle.ends import keep_run
from jobs.status import JobStatus
from jobs.storage.reports import ProgressWriter, read_reports
from jobs.storage.trainer_role import trainer_url
from tests.attack.case import Finding, Harm, Target, case

FORGED = {"step": 7, "total_steps": 7, "percent": 100.0, "epoch": 1.0, "loss": 0.0, "tokens_per_second": 1.0}


@case
def progress_of_anothers_job_can_not_be_forged(target: Target) -> Iterator[Finding]:
    """With the token of its own job, with one it has made up, and with one of an attempt that was given up."""
    url = str(target.service.settings.database_url)
    mine, theirs = (Attempt.begin(url, uuid4()) for _ in range(2))
    engine = create_engine(url)
    with engine.begin() as connection:
        keep_run(connection, theirs.job_id, {}, {"webhook_url": None})
    again = Attempt.begin(url, theirs.job_id)
    forgeries = {
        "the token of another job": replace(again, token=mine.token),
        "a token that is made up": replace(again, token=UUID(int=0)),
        "the token of an attempt that was given up": theirs,
    }
    for what, attempt in forgeries.items():
        yield from forge(attempt, what)
    report = read_reports(engine, [theirs.job_id])[theirs.job_id]
    if report.progress is not None or report.status is not None or report.result is not None:
        yield Finding(Harm.ESCAPED, f"the report of another's job was changed: {report.progress} {report.status}")
    try:
        again.beat()
        for attempt in (mine, again):
            attempt.end(JobStatus.CANCELLED)
    except Superseded as error:
        yield Finding(Harm.ESCAPED, f"its own process can't go on: {error}")
    engine.dispose()


@case
def a_job_can_not_make_a_key_or_see_other_jobs(target: Target) -> Iterator[Finding]:
    """With the address of the database that jobs of the local stack get."""
    url = str(target.service.settings.database_url)
    victim = Attempt.begin(url, uuid4())
    with create_engine(url).begin() as connection:
        keep_run(connection, victim.job_id, {})
    engine = create_engine(trainer_url(url, None))
    statements = (
        "SELECT key_sha256 FROM api_keys",
        "INSERT INTO api_keys (id, name, prefix, key_sha256, scopes) "
        "VALUES (gen_random_uuid(), 'x', 'ty_', 'x', '{admin}')",
        "SELECT * FROM idempotency_keys",
        "DELETE FROM job_events",
        "SET ROLE postgres; SELECT 1",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    for statement in statements:
        with suppress(ProgrammingError), engine.begin() as connection:
            connection.execute(text(statement))
            yield Finding(Harm.ESCAPED, f"the role of jobs may {statement}")
    with engine.connect() as connection:
        if found := connection.execute(text("SELECT job_id FROM job_reports")).all():
            yield Finding(Harm.LEAKED, f"the role of jobs sees {len(found)} reports without a claim")
    engine.dispose()
    victim.end(JobStatus.CANCELLED)


def forge(attempt: Attempt, what: str) -> Iterator[Finding]:
    """Try all that a job's process may write."""
    writes = {
        "progress": lambda: ProgressWriter(attempt.writing, attempt.job_id)(dict(FORGED)),
        "the end": lambda: attempt.end(JobStatus.COMPLETED),
        "a heartbeat": attempt.beat,
        "the end of its hold": attempt.release,
        "a version": lambda: attempt.publishing().__enter__(),
    }
    for name, write in writes.items():
        with suppress(Superseded):
            write()
            yield Finding(Harm.ESCAPED, f"{name} of another's job was written with {what}")
