"""`Submission`: the result of submitting a job; and the lock that serializes submissions."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from jobs.preflight import SubmissionWarning
from jobs.status import JobStatus
from jobs.storage.connections import autocommit, translate_errors
from sft.errors import StackError

LOCK_TIMEOUT_SECONDS = 60.0
SUBMIT_LOCK = 7_415_002  # PostgreSQL advisory lock


@dataclass(frozen=True)
class Submission:
    """A queued job at the time of its submission; `queue_position` is set if other jobs were ahead."""

    id: UUID
    status: JobStatus
    queue_position: int | None
    warnings: tuple[SubmissionWarning, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Submission":
        """Read what `to_json` returned, perhaps in an earlier release."""
        warnings = tuple(values.get("warnings", ()))
        return cls(UUID(values["id"]), JobStatus(values["status"]), values["queue_position"], warnings)

    def to_json(self) -> dict[str, Any]:
        """JSON values to store for a repeated request."""
        return {
            "id": str(self.id),
            "status": self.status.value,
            "queue_position": self.queue_position,
            "warnings": [*self.warnings],
        }


class SubmissionLock:
    """Allow one submission at a time, over all processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._process_lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[Connection]:
        """Hold the lock; yields an autocommit connection. Raises StackError after LOCK_TIMEOUT_SECONDS.

        Only one connection of a process waits for the lock, so that the others remain for the holder.
        """
        with self._take_process_lock(), translate_errors(), autocommit(self._engine) as connection:
            connection.execute(select(func.pg_advisory_lock(SUBMIT_LOCK)))
            try:
                yield connection
            finally:
                try:
                    connection.execute(select(func.pg_advisory_unlock(SUBMIT_LOCK)))
                except SQLAlchemyError:
                    connection.invalidate()  # a connection that holds the lock must not return to the pool
                    raise

    @contextmanager
    def _take_process_lock(self) -> Iterator[None]:
        if not self._process_lock.acquire(timeout=LOCK_TIMEOUT_SECONDS):
            raise StackError(f"waited {LOCK_TIMEOUT_SECONDS:.0f} s for other submissions; send the request again")
        try:
            yield
        finally:
            self._process_lock.release()
