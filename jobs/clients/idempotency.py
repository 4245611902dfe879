"""Idempotent requests: stores a client's `Idempotency-Key` and the response to repeat."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, delete, insert, select, update

from jobs.errors import IdempotencyKeyReused
from jobs.storage.tables import IdempotencyKey

KEPT = timedelta(hours=48)


@dataclass(frozen=True)
class RequestKey:
    """Identifies a repeated request: client and endpoint, the key, and a digest of the body."""

    scope: str
    key: str
    body_sha256: str


@dataclass(frozen=True)
class Claim:
    """A key in use: the idempotency key of its Prefect run, and the response once there is one."""

    run_key: str
    answer: dict[str, Any] | None


def find_claim(connection: Connection, request: RequestKey) -> Claim | None:
    """Find the claim of this request's key; None if it is new. Deletes keys older than 48 hours.

    Raises:
        IdempotencyKeyReused: the key was sent with another body.
    """
    connection.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < datetime.now(UTC) - KEPT))
    row = connection.execute(select(IdempotencyKey.body_sha256, IdempotencyKey.answer).where(_is(request))).first()
    if row is None:
        return None
    if row.body_sha256 != request.body_sha256:
        raise IdempotencyKeyReused(
            f"Idempotency-Key {request.key!r} was sent before with another body; use a new key for a new request"
        )
    return Claim(row.answer["run_key"], row.answer.get("answer"))


def make_claim(connection: Connection, request: RequestKey) -> Claim:
    """Claim a new key before its run is made: after a crash in between the run is found by `run_key`."""
    claim = Claim(uuid4().hex, None)
    connection.execute(insert(IdempotencyKey).values(**vars(request), answer={"run_key": claim.run_key}))
    return claim


def keep_answer(connection: Connection, request: RequestKey, claim: Claim, answer: dict[str, Any]) -> None:
    """Store the response that every repetition of the request gets."""
    kept = {"run_key": claim.run_key, "answer": answer}
    connection.execute(update(IdempotencyKey).where(_is(request)).values(answer=kept))


def _is(request: RequestKey) -> Any:
    return (IdempotencyKey.scope == request.scope) & (IdempotencyKey.key == request.key)
