"""Attempts at a job: fencing tokens, heartbeats, and the number of lost attempts.

A job gets another attempt when its process is lost. Each attempt holds a token, which is checked before every write
(report, checkpoint, version in the registry), so a stale process that comes back can't write.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, Select, Uuid, bindparam, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from jobs.job_secret import VARIABLE, make_secret
from jobs.lifecycle.claiming import ClaimRefused, claim_when_free
from jobs.lifecycle.ends import has_ended, keep_run, record_end
from jobs.status import JobStatus
from jobs.storage.claims import BUSY, claim
from jobs.storage.connections import wait_for_database
from jobs.storage.run_ids import find_job
from jobs.storage.tables import JOB_APPLICATION, JobAttempt, JobReport, engine_for
from sft.errors import StackError

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
CANCEL_DELAY = timedelta(seconds=3)  # for the job's worker to stop its process itself
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"  # set by a worker
HOST = socket.gethostname()

_WANTED = func.unnest(bindparam("ids", type_=ARRAY(Uuid))).table_valued("job_id", name="wanted").render_derived()
_JOBS = (
    select(JobReport, JobAttempt.job_id, JobAttempt.number)
    .select_from(_WANTED)
    .outerjoin(JobReport, JobReport.job_id == _WANTED.c.job_id)
    .outerjoin(JobAttempt, JobAttempt.job_id == _WANTED.c.job_id)
)


class Superseded(BaseException):
    """This attempt lost its token: another process has the job, or the job ended. Nothing may be written any more."""


@dataclass(frozen=True)
class Attempt:
    """One attempt, with its token. Can be pickled, for DDP workers."""

    database_url: str
    job_id: UUID
    number: int  # from 1
    token: UUID

    @classmethod
    def begin(cls, database_url: str, run_id: UUID) -> "Attempt":
        """Start an attempt at the run's job; the token of the one before becomes invalid.

        Raises:
            Superseded: the job has ended, though its run was started again.
            StackError: the database can't be reached, or another process works on the job.
        """
        if VARIABLE not in os.environ:  # this process has no keeper
            make_secret()
        engine, token = engine_for(database_url), uuid4()
        values = {
            "number": JobAttempt.number + 1, "token": token, "host": HOST, "pid": os.getpid(),
            "heartbeat_at": func.now(), "is_interrupted": False, "cause": None, "message": None,
            "database_role": func.session_user(),
        }  # fmt: skip

        def take(connection: Connection) -> "Attempt":
            job_id = find_job(connection, run_id)
            lock_attempt(connection, job_id)
            if status := has_ended(connection, job_id):
                raise ClaimRefused(status.value)
            taken = update(JobAttempt).where(JobAttempt.job_id == job_id).values(**values).returning(JobAttempt.number)
            return cls(database_url, job_id, connection.execute(taken).scalar_one(), token)

        try:
            return claim_when_free(engine, run_id, take)
        except ClaimRefused as refusal:
            if str(refusal) not in [*JobStatus]:
                raise StackError(f"this process can't work on the job of run {run_id}: {refusal}") from refusal
            raise Superseded(
                f"the job of run {run_id} has {refusal}; a final status never changes; it can't restart"
            ) from refusal

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction during which no other attempt can start.

        Raises:
            Superseded: another attempt has started.
            StackError: the database can't be reached.
        """
        with wait_for_database(engine_for(self.database_url)) as connection:
            held = select(JobAttempt.job_id).where(JobAttempt.job_id == self.job_id, JobAttempt.token == self.token)
            # A lock that allows heartbeats but blocks `lock_attempt`.
            if connection.execute(held.with_for_update(read=True, key_share=True)).first() is None:
                raise Superseded(f"job {self.job_id} is no longer this process's (attempt {self.number})")
            yield connection

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish something outside of the database (rename, register) while no other attempt can start.

        Raises as `writing` does, before the block; if the database fails during it, the publication stays.
        """
        is_done = False
        try:
            with self.writing():
                yield
                is_done = True
        except SQLAlchemyError as error:
            if not is_done:
                raise
            logger.warning("The connection to the database was lost during a publication (%s)", type(error).__name__)

    def beat(self) -> bool:
        """Write a heartbeat; returns whether the job was cancelled a while ago. Raises Superseded, SQLAlchemyError."""
        mine = (JobAttempt.job_id == self.job_id) & (JobAttempt.token == self.token)
        beat = update(JobAttempt).where(mine).values(heartbeat_at=func.now())
        is_cancelled = func.coalesce(JobAttempt.cancelled_at < func.now() - CANCEL_DELAY, False)
        with engine_for(self.database_url).begin() as connection:
            beaten = connection.execute(beat.returning(is_cancelled)).first()
        if beaten is None:
            raise Superseded(f"job {self.job_id} is no longer this process's (attempt {self.number})")
        return bool(beaten[0])

    def end(self, status: JobStatus, error: str | None = None, error_code: str | None = None) -> bool:
        """Write the job's end and release the job; False if it was cancelled meanwhile, which stays its end.

        Raises as `writing` does.
        """
        with self.writing() as connection:
            return record_end(connection, self.job_id, status, error, error_code)

    def release(self, is_interrupted: bool = False, cause: str | None = None, message: str | None = None) -> None:
        """Release the job after a stop (`is_interrupted`) or a failure with a `cause`."""
        said = {"token": None, "is_interrupted": is_interrupted, "cause": cause, "message": message}
        with self.writing() as connection:
            connection.execute(update(JobAttempt).where(JobAttempt.job_id == self.job_id).values(**said))


class Heartbeat:
    """Writes heartbeats from its own thread; ends the process when its attempt is superseded.

    If the job was cancelled, it sends SIGTERM to a worker's process: a container's or pod's worker does not, and that
    of a process may be gone.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def _beat(self) -> None:
        is_signalled = RUN_VARIABLE not in os.environ  # this process is its user's
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            try:
                if self._attempt.beat() and not is_signalled and not self._stopped.is_set():
                    is_signalled = True
                    os.kill(os.getpid(), signal.SIGTERM)
            except SQLAlchemyError as error:
                logger.warning("The database can't be reached (%s)", type(error).__name__)
            except Superseded as error:
                if not self._stopped.is_set():
                    leave(error)


def leave(error: Superseded) -> None:
    """End this process at once: a state it would report to Prefect would be taken for the job's end."""
    logger.error("Superseded: %s", error)
    logging.shutdown()
    os._exit(0)


def read_attempts(engine: Engine, job_ids: Iterable[UUID]) -> dict[UUID, JobAttempt]:
    """Read the newest attempts at these jobs, by id; a job without one is absent."""
    with Session(engine, expire_on_commit=False) as session:
        found = session.scalars(select(JobAttempt).where(JobAttempt.job_id.in_([*job_ids])))
        return {attempt.job_id: attempt for attempt in found}


def read_jobs(connection: Connection, job_ids: list[UUID]) -> tuple[dict[UUID, JobReport], dict[UUID, int]]:
    """Read these jobs' reports, and the number of attempts that have begun, each by id, in one statement.

    A job without a report is absent from the first, one that never began from the second.
    """
    with Session(connection, expire_on_commit=False) as session:
        rows = session.execute(_JOBS, {"ids": job_ids}).all()
    reports = {report.job_id: report for report, _, _ in rows if report is not None}
    return reports, {job_id: number for _, job_id, number in rows if number}


def lock_attempt(connection: Connection, job_id: UUID) -> JobAttempt:
    """Lock the job's row until the transaction ends, creating it if needed."""
    connection.execute(insert(JobAttempt).values(job_id=job_id).on_conflict_do_nothing())
    with Session(connection, expire_on_commit=False) as session:
        return session.scalars(select(JobAttempt).where(JobAttempt.job_id == job_id).with_for_update()).one()


def mark_cancelled(engine: Engine, job_id: UUID, run: Mapping[str, Any] | None = None) -> bool:
    """Record that the job is cancelled, which is its end, though its process may still save its last step.

    No attempt starts afterwards. False if it had ended before.

    Args:
        run: Prefect's run, stored if it was not stored before.
    """
    now = {"cancelled_at": func.now()}
    row = insert(JobAttempt).values(job_id=job_id, **now)
    with engine.begin() as connection:
        connection.execute(row.on_conflict_do_update(index_elements=["job_id"], set_=now))
        keep_run(connection, job_id, run or {})
        return record_end(connection, job_id, JobStatus.CANCELLED, is_stopped=False)


def mark_crashed(engine: Engine, run_id: UUID, pid: int, cause: str, message: str) -> bool:
    """Record that the process with this id on this host has crashed, before or after its attempt began.

    False if the run is not known to be a job's.
    """
    is_its = JobAttempt.token.is_not(None) & (JobAttempt.host == HOST) & (JobAttempt.pid == pid)
    has_not_begun = (JobAttempt.number == JobAttempt.settled) & ~JobAttempt.is_interrupted
    said = {"token": None, "cause": cause, "message": message}
    with engine.begin() as connection:
        if problem := claim(connection, run_id):
            return problem == BUSY or problem in [*JobStatus]  # the attempt of another process counts, or the end
        job_id = find_job(connection, run_id)
        if not any(connection.execute(_is_known(table, job_id)).scalar() for table in (JobReport, JobAttempt)):
            return False
        row = insert(JobAttempt).values(job_id=job_id, **said)
        where = is_its | has_not_begun
        connection.execute(row.on_conflict_do_update(index_elements=["job_id"], set_=said, where=where))
        return True


def _is_known(table: type[JobReport] | type[JobAttempt], job_id: UUID) -> Select[tuple[bool]]:
    return select(exists().where(table.job_id == job_id))


def has_concluded(engine: Engine, run_id: UUID) -> bool:
    """Whether the run's job has ended, or its attempt has recorded that it was stopped or what it failed with."""
    with engine.connect() as connection:
        job_id = find_job(connection, run_id)
        if has_ended(connection, job_id) is not None:
            return True
        said = JobAttempt.token.is_(None) & (JobAttempt.is_interrupted | JobAttempt.cause.is_not(None))
        return connection.execute(select(said).where(JobAttempt.job_id == job_id)).scalar() is True


def end_connections(engine: Engine, run_id: str) -> None:
    """End the database connections of a run's lost process, which may hold locks while it is frozen."""
    end = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name")
    try:
        with engine.begin() as connection:
            connection.execute(end, {"name": f"{JOB_APPLICATION}{run_id}"})
    except SQLAlchemyError as error:  # of another role
        logger.warning("The connections of run %s could not be ended (%s)", run_id, type(error).__name__)


def mark_interrupted(engine: Engine, run_id: UUID) -> None:
    """Record that a process was stopped before its attempt at the run's job started."""
    now = {"is_interrupted": True}
    has_not_begun = JobAttempt.number == JobAttempt.settled
    with engine.begin() as connection:
        if claim(connection, run_id):
            return  # the attempt of another process counts
        row = insert(JobAttempt).values(job_id=find_job(connection, run_id), **now)
        connection.execute(row.on_conflict_do_update(index_elements=["job_id"], set_=now, where=has_not_begun))
