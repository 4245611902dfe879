"""Tuneyard's own small tables, on PostgreSQL through SQLAlchemy; their schema is `jobs/migrations`."""

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import alembic.command
import alembic.config
from sqlalchemy import DateTime, Engine, Text, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_LOCK = 7_415_001  # PostgreSQL advisory lock: one process migrates at a time


class Base(DeclarativeBase):
    """Base of every table."""


class JobReport(Base):
    """What a job says of itself while and after it runs. The job is Prefect's flow run; this is its annex."""

    __tablename__ = "job_reports"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    phase: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)
    tracking_url: Mapped[str | None] = mapped_column(Text)
    output_path: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=lambda: datetime.now(UTC)
    )


class SavedConfig(Base):
    """A named, possibly partial configuration."""

    __tablename__ = "saved_configs"

    config_id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(Text)
    config: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


@functools.cache
def engine_for(database_url: str) -> Engine:
    """The process's one connection pool for this database."""
    return create_engine(database_url, pool_pre_ping=True, pool_size=5, max_overflow=15)


def migrate(database_url: str) -> None:
    """Bring the schema up to date; safe to call from several processes at once."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    engine = create_engine(database_url)
    try:
        with engine.connect() as connection:
            connection.execute(func.pg_advisory_lock(SCHEMA_LOCK).select())
            connection.commit()
            try:
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
                connection.commit()
            finally:
                connection.execute(func.pg_advisory_unlock(SCHEMA_LOCK).select())
                connection.commit()
    finally:
        engine.dispose()
