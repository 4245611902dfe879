"""The webhooks' outbox: rows of `webhook_deliveries`, one per event of a job.

A sender claims a row by moving its next attempt into the future, so that the row of a dead sender is retried.
"""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Engine,
    cast,
    delete,
    exists,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from jobs.errors import DeliveryNotFound
from jobs.storage.tables import JobEvent, JobReport, WebhookDelivery
from jobs.webhooks.call import CallOutcome

ENDED = "ended"  # the event of a payload that names none
CHANNEL = "tuneyard_watchdog"  # a NOTIFY here wakes the watchdog
KEPT_TRYING = timedelta(days=3)
CLAIM = timedelta(seconds=90)  # longer than any attempt takes
FIRST_PAUSE_SECONDS, PAUSE_FACTOR, LONGEST_PAUSE_SECONDS = 2.0, 3.0, 4 * 3600.0
JITTER = 0.25
PUT_OFF = timedelta(seconds=2)
PLACES = 16  # deliveries considered per host and client; a host never has more senders
CLIENT = "client"  # in `JobReport.run`
BATCH_ROWS = 500


def add_delivery(engine: Engine, job_id: UUID, url: str, payload: dict[str, Any]) -> bool:
    """Queue a webhook for an event of a job and wake the watchdog; False if it was queued before."""
    with engine.begin() as connection:
        return put_delivery(connection, job_id, url, payload)


def put_delivery(connection: Connection, job_id: UUID, url: str, payload: dict[str, Any]) -> bool:
    """`add_delivery` in a transaction."""
    event = {"event": payload.get("event", ENDED), "event_key": _event_key(payload)}
    row = {"job_id": job_id, "status": payload["status"], "url": url, "payload": payload, **event}
    row["client"] = func.coalesce(
        select(JobReport.run[CLIENT].astext).where(JobReport.job_id == job_id).scalar_subquery(), ""
    )
    times = {"next_attempt_at": func.now(), "expires_at": func.now() + KEPT_TRYING}
    statement = insert(WebhookDelivery).values(**row, **times).on_conflict_do_nothing()
    is_new = connection.execute(statement.returning(WebhookDelivery.id)).first() is not None
    if is_new:
        connection.execute(text(f"NOTIFY {CHANNEL}"))
    return is_new


def _event_key(payload: dict[str, Any]) -> str:
    """The key that makes events unique in a job: the start, each checkpoint by its step, each final status."""
    if "event" not in payload:
        return str(payload["status"])
    return ":".join(str(payload[name]) for name in ("event", "step") if name in payload)


def message_id(delivery: WebhookDelivery) -> str:
    """The id by which a receiver recognizes repeated deliveries."""
    return f"msg_{delivery.id.hex}"


class Due(NamedTuple):
    """A delivery whose next attempt is due."""

    id: UUID
    url: str
    client: str
    is_failing: bool  # an attempt at this receiver has failed, for this or another pending delivery


def find_due(engine: Engine, limit: int) -> list[Due]:
    """Find at most `limit` due deliveries, one of each client in turn.

    Within a client, one of each host in turn: hosts without failed attempts first, then first attempts, then oldest.
    """
    # A resend on demand starts over: earlier attempts do not count.
    first_try = WebhookDelivery.expires_at - KEPT_TRYING
    tried_at = cast(WebhookDelivery.attempts[-1]["time"].astext, DateTime(timezone=True))
    is_repeat = func.coalesce(tried_at >= first_try, False)
    receiver = _receiver()
    pending = select(
        *(WebhookDelivery.id, WebhookDelivery.url, WebhookDelivery.client, WebhookDelivery.next_attempt_at),
        *(receiver.label("receiver"), is_repeat.label("is_repeat")),
        func.bool_or(is_repeat).over(partition_by=(WebhookDelivery.client, receiver)).label("is_failing"),
    )
    one = pending.where(WebhookDelivery.state == "pending").subquery().c
    oldest = (one.is_repeat, one.next_attempt_at)
    place = func.row_number().over(partition_by=(one.client, one.receiver), order_by=oldest).label("place")
    due = select(*one, place).where(one.next_attempt_at <= func.now()).subquery().c
    order = (due.place, due.is_failing, due.is_repeat, due.next_attempt_at)
    turn = func.row_number().over(partition_by=due.client, order_by=order).label("turn")
    wanted = select(*due, turn).where(due.place <= PLACES).subquery().c
    ordered = select(wanted.id, wanted.url, wanted.client, wanted.is_failing)
    ordered = ordered.order_by(wanted.turn, wanted.is_failing, wanted.next_attempt_at).limit(limit)
    with engine.connect() as connection:
        return [Due(*row) for row in connection.execute(ordered)]


def _receiver() -> ColumnElement[str]:
    """SQL for host and port as written; close to `shares.name_receiver`, which also normalizes the spelling."""
    place = func.lower(func.substring(WebhookDelivery.url, "^[^:/?#]+://([^/?#]*)"))
    return func.regexp_replace(place, r"\.*(:0*([0-9]*))?$", r":\2")


def claim(engine: Engine, ids: Sequence[UUID]) -> list[WebhookDelivery]:
    """Claim those of these deliveries that are still due; no other sender claims them during the attempt."""
    is_due = (WebhookDelivery.state == "pending") & (WebhookDelivery.next_attempt_at <= func.now())
    due = select(WebhookDelivery.id).where(WebhookDelivery.id.in_(ids), is_due)
    taken = (
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(due.with_for_update(skip_locked=True).scalar_subquery()))
        .values(next_attempt_at=func.now() + CLAIM)
        .returning(WebhookDelivery)
        .execution_options(synchronize_session=False)
    )
    with Session(engine, expire_on_commit=False) as session, session.begin():
        return [*session.scalars(taken)]


def put_off(engine: Engine, delivery: WebhookDelivery) -> None:
    """Release a claimed delivery for a new claim in a moment, as no attempt was made."""
    changes = update(WebhookDelivery).where(WebhookDelivery.id == delivery.id, WebhookDelivery.state == "pending")
    with engine.begin() as connection:
        connection.execute(changes.values(next_attempt_at=func.now() + PUT_OFF))


def wake(engine: Engine) -> None:
    """Wake the watchdog to send what is due."""
    with engine.begin() as connection:
        connection.execute(text(f"NOTIFY {CHANNEL}"))


def keep_attempt(engine: Engine, delivery: WebhookDelivery, at: datetime, outcome: CallOutcome) -> None:
    """Store the outcome of an attempt and the time of the next one."""
    attempt = {"time": at.isoformat(), "status_code": outcome.status_code, "error": outcome.error}
    first_try = delivery.expires_at - KEPT_TRYING
    tried = 1 + sum(datetime.fromisoformat(one["time"]) >= first_try for one in delivery.attempts)
    changes: dict[str, Any] = {"state": _state_after(outcome, at >= delivery.expires_at), "next_attempt_at": None}
    if changes["state"] == "pending":
        pause = max(pause_seconds(tried), outcome.retry_after_seconds)
        left = (delivery.expires_at - at).total_seconds()
        changes["next_attempt_at"] = at + timedelta(seconds=min(pause, left))
    changes["attempts"] = WebhookDelivery.attempts + literal([attempt], JSONB)
    with engine.begin() as connection:
        connection.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery.id).values(**changes))


def _state_after(outcome: CallOutcome, is_last: bool) -> str:
    if outcome.is_delivered:
        return "delivered"
    if outcome.status_code == 410:  # Gone: the receiver wants no more webhooks
        return "gone"
    return "failed" if is_last else "pending"


def pause_seconds(tried: int) -> float:
    """Seconds to wait after the `tried`-th attempt: exponential backoff with jitter."""
    pause = min(FIRST_PAUSE_SECONDS * PAUSE_FACTOR ** (tried - 1), LONGEST_PAUSE_SECONDS)
    return pause * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret


def list_deliveries(engine: Engine, job_id: UUID) -> list[WebhookDelivery]:
    """A job's deliveries, oldest first."""
    wanted = select(WebhookDelivery).where(WebhookDelivery.job_id == job_id).order_by(WebhookDelivery.created_at)
    with Session(engine, expire_on_commit=False) as session:
        return [*session.scalars(wanted)]


def forget_old_deliveries(engine: Engine, days: int) -> int:
    """Delete deliveries settled so many days ago, of jobs without later ones, at most 500; returns their number."""
    before = datetime.now(UTC) - timedelta(days=days)
    is_heard_of = exists().where(JobEvent.job_id == WebhookDelivery.job_id, JobEvent.created_at >= before)
    is_old = (WebhookDelivery.state != "pending") & (WebhookDelivery.created_at < before) & ~is_heard_of
    old = select(WebhookDelivery.id).where(is_old).limit(BATCH_ROWS)
    with engine.begin() as connection:
        forgotten = delete(WebhookDelivery).where(WebhookDelivery.id.in_(old.scalar_subquery()))
        return len(connection.execute(forgotten.returning(WebhookDelivery.id)).all())


def resend(engine: Engine, job_id: UUID, delivery_id: str) -> WebhookDelivery:
    """Queue a delivery again under the same id, for another three days. Raises DeliveryNotFound."""
    unknown = DeliveryNotFound(f"Delivery {delivery_id} not found; job {job_id} has none of this id")
    try:
        parsed = UUID(delivery_id)
    except ValueError as error:
        raise unknown from error
    changes = {"state": "pending", "next_attempt_at": func.now(), "expires_at": func.now() + KEPT_TRYING}
    wanted = update(WebhookDelivery).where(WebhookDelivery.id == parsed, WebhookDelivery.job_id == job_id)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        found = session.scalar(wanted.values(**changes).returning(WebhookDelivery))
        if found is None:
            raise unknown
        session.execute(text(f"NOTIFY {CHANNEL}"))
        return found
