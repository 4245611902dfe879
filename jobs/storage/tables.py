"""SQLAlchemy models of Tuneyard's own tables; `jobs/storage/migrations` creates them."""

import functools
import os
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    Engine,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    create_engine,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.storage.claims import connection_options
from jobs.storage.keepalives import keep_alive
from jobs.storage.schema import keep_current
from jobs.storage.schema import migrate as migrate

JOB_APPLICATION = "tuneyard-job-"  # with the run's id, the name of its process's connections in PostgreSQL


class Base(DeclarativeBase):
    """Base of every table."""


class JobReport(Base):
    """A job's own report: progress, result and end. Complements Prefect's flow run of the job.

    Once `status` is set, nothing but `run_id` changes any more (see `jobs.lifecycle.ends`).
    """

    __tablename__ = "job_reports"
    __table_args__ = (
        Index("ix_job_reports_open", "job_id", postgresql_where=text("status IS NULL AND run IS NOT NULL")),
        Index("ix_job_reports_ended_at", "ended_at"),
        Index("ix_job_reports_run_id", "run_id", postgresql_where=text("run_id IS NOT NULL")),
    )

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    phase: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)
    tracking_url: Mapped[str | None] = mapped_column(Text)
    output_path: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str | None] = mapped_column(Text)  # completed, failed or cancelled: its end
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    run: Mapped[dict[str, Any] | None] = mapped_column(JSONB)  # when first seen: `jobs.lifecycle.ends.RUN_FACTS`
    run_id: Mapped[UUID | None]  # of a re-created run; otherwise the run has the job's id
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=lambda: datetime.now(UTC)
    )


class JobEvent(Base):
    """An event of a job, ordered by `id`: a phase, a step, an evaluation, a checkpoint, its end."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_id: Mapped[UUID]
    event: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class JobAttempt(Base):
    """The newest attempt at a job, and the number of lost ones before it."""

    __tablename__ = "job_attempts"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Integer, default=0)  # attempts started so far
    token: Mapped[UUID | None]  # fencing token of the process that may write; none after a release or a loss
    host: Mapped[str | None] = mapped_column(Text)
    pid: Mapped[int | None] = mapped_column(Integer)
    heartbeat_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    is_interrupted: Mapped[bool] = mapped_column(Boolean, default=False)  # stopped by a signal: not a lost attempt
    cause: Mapped[str | None] = mapped_column(Text)  # code of the error it failed with
    message: Mapped[str | None] = mapped_column(Text)
    settled: Mapped[int] = mapped_column(Integer, default=0)  # number of the last attempt that was declared lost
    settled_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    lost: Mapped[int] = mapped_column(Integer, default=0)
    cancelled_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    database_role: Mapped[str | None] = mapped_column(Text)  # that its process connected as


class JobClaim(Base):
    """The process that may write a job's rows with the trainers' database role (`jobs.storage.trainer_role`)."""

    __tablename__ = "job_claims"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    claimed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class SavedConfig(Base):
    """The present version of a named, possibly partial configuration."""

    __tablename__ = "saved_configs"

    config_id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(Text)
    config: Mapped[dict[str, Any]] = mapped_column(JSONB)
    version: Mapped[int] = mapped_column(Integer, default=1)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class SavedConfigVersion(Base):
    """A version of a saved configuration, from 1."""

    __tablename__ = "saved_config_versions"

    config_id: Mapped[UUID] = mapped_column(ForeignKey("saved_configs.config_id"), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    config: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class IdempotencyKey(Base):
    """A client's `Idempotency-Key` and the stored response."""

    __tablename__ = "idempotency_keys"

    scope: Mapped[str] = mapped_column(Text, primary_key=True)  # endpoint and client
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    body_sha256: Mapped[str] = mapped_column(Text)
    answer: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), index=True)


class ApiKey(Base):
    """A client's key; only its hash is kept."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(Text)  # its first characters, to recognize it by
    key_sha256: Mapped[str] = mapped_column(Text, unique=True)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    owner_id: Mapped[UUID | None]  # of the jobs that it sees and makes; itself if null
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class WebhookDelivery(Base):
    """An event to deliver to a job's webhook: its start, a checkpoint or its end."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("job_id", "event_key"),
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("state = 'pending'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    job_id: Mapped[UUID]
    event: Mapped[str] = mapped_column(Text, default="ended")  # or started, checkpoint
    event_key: Mapped[str] = mapped_column(Text)  # unique in a job
    status: Mapped[str] = mapped_column(Text)  # completed, failed or cancelled; running before the end
    url: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    state: Mapped[str] = mapped_column(Text, default="pending")  # then delivered, failed or gone
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)  # time, status_code, error
    next_attempt_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    client: Mapped[str] = mapped_column(Text, server_default="")  # who submitted the job; empty if unknown


class Watermark(Base):
    """How far a periodic task of the watchdog has processed."""

    __tablename__ = "marks"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    reached_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class WatchdogLease(Base):
    """The active watchdog (`jobs.watchdog.lease`). One row."""

    __tablename__ = "watchdog_lease"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    holder: Mapped[UUID]
    host: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Integer)
    term: Mapped[int] = mapped_column(Integer)  # counts takeovers; its advisory lock is held while the holder is alive
    looked_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))  # its last finished task
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class WatchdogClock(Base):
    """Since when the watchdog has observed a value of a run (`jobs.watchdog.clocks`)."""

    __tablename__ = "watchdog_clocks"

    task: Mapped[str] = mapped_column(Text, primary_key=True)
    run_id: Mapped[str] = mapped_column(Text, primary_key=True)
    what: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@functools.cache
def engine_for(database_url: str) -> Engine:
    """The process's one connection pool for this database."""
    named = connection_options(database_url) | _name()
    engine = create_engine(database_url, connect_args=named, pool_pre_ping=True, pool_size=5, max_overflow=15)
    return keep_alive(keep_current(engine))


def _name() -> dict[str, str]:
    """Names the connections of a job's process, so that the watchdog can end those of one that is lost."""
    run_id = os.environ.get("PREFECT__FLOW_RUN_ID")
    return {"application_name": f"{JOB_APPLICATION}{run_id}"} if run_id else {}
