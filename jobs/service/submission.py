"""`Submission`: what a client is told of a job that it submitted; and the lock that submissions take one by one."""

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

TURN_SECONDS = 60.0
SUBMIT_LOCK = 7_415_002  # PostgreSQL advisory lock: submissions take their places one after the other


@dataclass(frozen=True)
class Submission:
    """A job that was put in line, as it stood then; `queue_position` is set while others are ahead."""

    id: UUID
    status: JobStatus
    queue_position: int | None
    warnings: tuple[SubmissionWarning, ...] = ()

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> "Submission":
        """Read what `to_answer` wrote, perhaps in an earlier release."""
        warnings = tuple(answer.get("warnings", ()))
        return cls(UUID(answer["id"]), JobStatus(answer["status"]), answer["queue_position"], warnings)

    def to_answer(self) -> dict[str, Any]:
        """Plain JSON values, to be kept for a request that comes again."""
        return {
            "id": str(self.id),
            "status": self.status.value,
            "queue_position": self.queue_position,
            "warnings": [*self.warnings],
        }


class SubmissionLock:
    """One submission at a time, over all processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._here = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[Connection]:
        """Hold the lock; its connection commits every statement by itself.

        A process waits with one connection only: the others would be lacking to the one that is at work.
        """
        with self._take(), translate_errors(), autocommit(self._engine) as connection:
            connection.execute(select(func.pg_advisory_lock(SUBMIT_LOCK)))
            try:
                yield connection
            finally:
                try:
                    connection.execute(select(func.pg_advisory_unlock(SUBMIT_LOCK)))
                except SQLAlchemyError:
                    connection.invalidate()  # a lock must not go back into the pool
                    raise

    @contextmanager
    def _take(self) -> Iterator[None]:
        if not self._here.acquire(timeout=TURN_SECONDS):
            raise StackError(f"other submissions have kept this one waiting for {TURN_SECONDS:.0f} s; send it again")
        try:
            yield
        finally:
            self._here.release()
