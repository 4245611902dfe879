"""Webhooks as a duty of the watchdog: what nobody else put down to be told is put down, what is due is sent."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert

from jobs.outbox import add_delivery, claim_due, keep_attempt, message_id
from jobs.pool_runs import PAGE
from jobs.progress import read_reports
from jobs.settings import Settings
from jobs.status import status_of
from jobs.store import Mark, WebhookDelivery
from jobs.webhook import Outcome, build_payload, send

logger = logging.getLogger(__name__)

SENDERS = 8
MARK = "ended_jobs"
OVERLAP = timedelta(minutes=5)  # between a run's end and when Prefect shows it, and between two machines' clocks
ENDED = ["COMPLETED", "FAILED", "CANCELLED"]


class Deliveries:
    """Both halves of the duty, for one process."""

    def __init__(self, engine: Engine, settings: Settings, prefect: httpx.Client) -> None:
        self._engine = engine
        self._prefect = prefect
        self._settings = settings
        self._secrets = [secret.get_secret_value() for secret in settings.webhook_secrets]
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="webhook")
        self._free = threading.Semaphore(SENDERS)
        self._seen: dict[str, datetime] = {}  # ended jobs within the overlap, by when they ended

    def send_due(self) -> None:
        """Begin to send as many as can be sent at once of those that are due."""
        reserved = sum(self._free.acquire(blocking=False) for _ in range(SENDERS))
        try:
            for delivery in claim_due(self._engine, reserved) if reserved else []:
                self._senders.submit(self._send, delivery)
                reserved -= 1  # given back when it is sent
        finally:
            if reserved:
                self._free.release(reserved)

    def add_missing(self) -> None:
        """Put down every end of a job with a webhook that was not: its process was killed, or the database away."""
        began_at = datetime.now(UTC)
        with self._engine.connect() as connection:
            reached_at = connection.execute(select(Mark.reached_at).where(Mark.name == MARK)).scalar()
        since = (reached_at or began_at) - OVERLAP
        self._seen = {run_id: ended_at for run_id, ended_at in self._seen.items() if ended_at >= since}
        for run in self._ended_runs(since) if self._count_ended(since) != len(self._seen) else ():
            self._add(run)
            self._seen[run["id"]] = datetime.fromisoformat(run["end_time"])
        row = insert(Mark).values(name=MARK, reached_at=began_at)
        with self._engine.begin() as connection:
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"reached_at": began_at}))

    def _add(self, run: dict[str, Any]) -> None:
        url = (run["parameters"] or {}).get("webhook_url")
        if not url:
            return
        job_id, state = UUID(run["id"]), run["state"]
        status = status_of(state["type"], state["name"] or "", has_free_slot=False).value
        report = read_reports(self._engine, [job_id]).get(job_id)
        if add_delivery(self._engine, job_id, url, build_payload(job_id, status, report, state["message"])):
            logger.info("Webhook of job %s (%s): put down by the watchdog", job_id, status)

    def _count_ended(self, since: datetime) -> int:
        answer = self._prefect.post("/flow_runs/count", json=_ended_since(since))
        return int(answer.raise_for_status().json())

    def _ended_runs(self, since: datetime) -> Iterator[dict[str, Any]]:
        """Jobs that have ended since then and were not seen yet, newest first; one that ends meanwhile may come twice.

        Prefect leaves out those that were seen, and is not asked at all while it counts no others: to read thousands of
        them each time would slow it down for everybody.
        """
        wanted = {**_ended_since(since), "sort": "END_TIME_DESC", "limit": PAGE}
        wanted["flow_runs"] = {**wanted["flow_runs"], "id": {"not_any_": [*self._seen]}}
        offset = 0
        while True:
            answer = self._prefect.post("/flow_runs/filter", json={**wanted, "offset": offset})
            page = answer.raise_for_status().json()
            yield from page
            offset += len(page)
            if len(page) < PAGE:
                return

    def _call(self, delivery: WebhookDelivery) -> Outcome:
        """One attempt. Whatever the answer does to the code that reads it is recorded as the attempt's error."""
        try:
            allowed = self._settings.webhook_allow
            return send(delivery.url, message_id(delivery), delivery.payload, self._secrets, allowed)
        except Exception as error:
            logger.exception("Webhook of job %s: the attempt failed in an unexpected way", delivery.job_id)
            return Outcome(error=f"the answer could not be read ({type(error).__name__})")

    def _send(self, delivery: WebhookDelivery) -> None:
        try:
            at = datetime.now(UTC)
            outcome = self._call(delivery)
            keep_attempt(self._engine, delivery, at, outcome)
            came = outcome.error or f"the receiver answered {outcome.status_code}"
            logger.log(
                logging.INFO if outcome.is_delivered else logging.WARNING,
                "Webhook of job %s (%s): %s", delivery.job_id, delivery.event_key, came,
            )  # fmt: skip
        except Exception:
            logger.exception("Webhook of job %s: the attempt could not be made or put down", delivery.job_id)
        finally:
            self._free.release()


def _ended_since(since: datetime) -> dict[str, Any]:
    ended = {"state": {"type": {"any_": ENDED}}, "end_time": {"after_": since.isoformat()}}
    return {"flows": {"name": {"any_": ["finetune"]}}, "flow_runs": ended}
