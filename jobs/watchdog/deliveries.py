"""Periodic tasks: write missing ends of jobs, and send the webhooks that are due."""

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from jobs.engine.pool_runs import PoolRuns
from jobs.lifecycle.ends import STATES, has_ended, settle
from jobs.settings import Settings
from jobs.storage.tables import Watermark, WebhookDelivery
from jobs.vocabulary import FINAL_STATES, FLOW_NAME, PAGE_SIZE
from jobs.webhooks.call import CallOutcome, send
from jobs.webhooks.outbox import claim, find_due, keep_attempt, message_id, put_off, wake
from jobs.webhooks.shares import SENDERS, AddressBusy, SenderSlot, Shares, name_receiver

logger = logging.getLogger(__name__)

LOOKED_AT = 1024
MARK, ALL_ENDS = "ended_jobs", "all_ends"
LONG_AGO = datetime.fromtimestamp(0, UTC)
OVERLAP = timedelta(minutes=5)  # covers the delay until Prefect shows an end, and differences between clocks


class Deliverer:
    """Delivers webhooks: finds jobs that have ended, and makes the calls that are due."""

    def __init__(self, engine: Engine, settings: Settings, prefect: httpx.Client) -> None:
        self._engine = engine
        self._prefect = prefect
        self._runs = PoolRuns(prefect, settings.work_pool, engine)
        self._notify_since = LONG_AGO
        self._settings = settings
        self._secrets = [secret.get_secret_value() for secret in settings.webhook_secrets]
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook")
        self._shares = Shares()
        self._is_behind = False  # more deliveries are due than can be sent
        self._seen: dict[str, datetime] = {}  # ended jobs within the overlap, with the time of their end

    def send_due(self) -> None:
        """Start sending due deliveries, within each receiver's share (`jobs.webhooks.shares`)."""
        if self._shares.is_full:
            return
        due = find_due(self._engine, LOOKED_AT)
        slots: dict[UUID, SenderSlot] = {}
        for one in due:
            if slot := self._shares.take(name_receiver(one.url), one.is_failing, one.client):
                slots[one.id] = slot
        self._is_behind = len(slots) < len(due)
        try:
            for delivery in claim(self._engine, [*slots]) if slots else []:
                slot = slots.pop(delivery.id)
                try:
                    self._senders.submit(self._send, delivery, slot)  # it releases the slot
                except BaseException:
                    self._shares.give_back(slot)
                    raise
        finally:
            for slot in slots.values():
                self._shares.give_back(slot)

    def add_missing(self) -> None:
        """Write the ends of jobs that Prefect shows as ended but that have none: killed, or state set by hand.

        The first time, the ends of all jobs are written; old ones queue no webhook.
        """
        began_at = datetime.now(UTC)
        with self._engine.connect() as connection:
            marks = {
                mark.name: mark.reached_at for mark in connection.execute(select(Watermark.name, Watermark.reached_at))
            }
        reached_at = marks.get(MARK)
        self._notify_since = min(reached_at or began_at, began_at) - OVERLAP  # the clock may have been set back
        since = self._notify_since if ALL_ENDS in marks else LONG_AGO
        self._seen = {run_id: ended_at for run_id, ended_at in self._seen.items() if ended_at >= since}
        for run in self._ended_runs(since) if self._count_unseen(since) else ():
            self._settle(run)
            self._seen[run["run_id"]] = datetime.fromisoformat(run["end_time"])
        for name in (MARK, ALL_ENDS):
            row = insert(Watermark).values(name=name, reached_at=began_at)
            with self._engine.begin() as connection:
                connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"reached_at": began_at}))

    def _settle(self, run: dict[str, Any]) -> None:
        """Write the end of the run's job, unless it was written before, and set Prefect's state to it."""
        queues_webhook = datetime.fromisoformat(run["end_time"]) >= self._notify_since
        job_id = UUID(run["id"])
        with self._engine.begin() as connection:
            if settle(connection, run, queues_webhook):
                logger.info("Wrote the end of job %s, which its process had not written", job_id)
            status = has_ended(connection, job_id)
        if status and STATES[status]["type"] != run["state_type"]:
            self._runs.set_state(run["id"], {**STATES[status], "message": "This is how the job ended."}, force=True)

    def _count_unseen(self, since: datetime) -> int:
        """Number of ended jobs not seen yet; counted by id, as seen runs may be deleted."""
        response = self._prefect.post("/flow_runs/count", json=_ended_since(since, [*self._seen]))
        return int(response.raise_for_status().json())

    def _ended_runs(self, since: datetime) -> Iterator[dict[str, Any]]:
        """Yield jobs that ended since then and were not seen yet, newest first; one that ends meanwhile may come twice.

        Prefect filters out those that were seen, and is not asked for a page if it counts none: reading thousands of
        runs each time would slow it down.
        """
        wanted = {**_ended_since(since, [*self._seen]), "sort": "END_TIME_DESC", "limit": PAGE_SIZE}
        offset = 0
        while True:
            response = self._prefect.post("/flow_runs/filter", json={**wanted, "offset": offset})
            page = self._runs.name_jobs(response.raise_for_status().json())
            yield from page
            offset += len(page)
            if len(page) < PAGE_SIZE:
                return

    def _call(self, delivery: WebhookDelivery, slot: SenderSlot) -> CallOutcome:
        """Make one delivery attempt. Unexpected errors in reading the response are recorded as the attempt's error.

        Raises:
            AddressBusy: no attempt was made; it is made later.
        """
        try:
            return send(
                delivery.url,
                message_id(delivery),
                delivery.payload,
                self._secrets,
                self._settings.webhook_allow,
                lambda address: self._shares.enter(slot, address),
            )
        except AddressBusy:
            raise
        except Exception:
            logger.exception("Webhook of job %s: the attempt failed in an unexpected way", delivery.job_id)
            return CallOutcome(error="the response could not be read")

    def _send(self, delivery: WebhookDelivery, slot: SenderSlot) -> None:
        has_answered = None
        try:
            at = datetime.now(UTC)
            outcome = self._call(delivery, slot)
            has_answered = outcome.status_code is not None
            keep_attempt(self._engine, delivery, at, outcome)
            came = outcome.error or f"the receiver responded {outcome.status_code}"
            logger.log(
                logging.INFO if outcome.is_delivered else logging.WARNING,
                "Webhook of job %s (%s): %s", delivery.job_id, delivery.event_key, came,
            )  # fmt: skip
        except AddressBusy:
            put_off(self._engine, delivery)
        except Exception:
            logger.exception("Webhook of job %s: the attempt could not be made or recorded", delivery.job_id)
        finally:
            self._shares.give_back(slot, has_answered)
        if self._is_behind and has_answered is not None:
            with contextlib.suppress(SQLAlchemyError):  # the task runs again soon
                wake(self._engine)


def _ended_since(since: datetime, seen: list[str]) -> dict[str, Any]:
    ended = {
        "state": {"type": {"any_": FINAL_STATES}},
        "end_time": {"after_": since.isoformat()},
        "id": {"not_any_": seen},
    }
    return {"flows": {"name": {"any_": [FLOW_NAME]}}, "flow_runs": ended}
