"""Requests that may come again: a client's `Idempotency-Key` and the one answer it gets."""

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
    """What tells a repeated request: whose key for which endpoint, the key, and a digest of the body."""

    scope: str
    key: str
    body_sha256: str


@dataclass(frozen=True)
class Claim:
    """A key that is taken: the idempotency key of its Prefect run, and the answer once there is one."""

    run_key: str
    answer: dict[str, Any] | None


def find_claim(connection: Connection, request: RequestKey) -> Claim | None:
    """What is known of this request's key, None when it is new; keys older than 48 hours are forgotten.

    Raises:
        IdempotencyKeyReused: the key came with another body.
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
    """Take a new key, before its run is made: a crash in between leaves the run to be found by `run_key`."""
    claim = Claim(uuid4().hex, None)
    connection.execute(insert(IdempotencyKey).values(**vars(request), answer={"run_key": claim.run_key}))
    return claim


def keep_answer(connection: Connection, request: RequestKey, claim: Claim, answer: dict[str, Any]) -> None:
    """Complete a claim with what every repetition is told."""
    kept = {"run_key": claim.run_key, "answer": answer}
    connection.execute(update(IdempotencyKey).where(_is(request)).values(answer=kept))


def _is(request: RequestKey) -> Any:
    return (IdempotencyKey.scope == request.scope) & (IdempotencyKey.key == request.key)
