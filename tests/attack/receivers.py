"""Receivers of webhooks that accept and never answer, with many deliveries, beside one that answers."""

import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import Engine, insert, update

from jobs.storage.tables import WebhookDelivery
from jobs.webhooks.outbox import KEPT_TRYING, add_delivery
from tests.receiver import Receiver

WITHIN_SECONDS = 5.0


@dataclass(frozen=True)
class Calls:
    """Deliveries to a good receiver, those that came too late, and the slowest."""

    made: int
    late: int
    slowest_seconds: float


def call_beside_dead_receivers(
    engine: Engine,
    dead: int = 1,
    deliveries: int = 1000,
    are_repeats: bool = False,
    calls: int = 5,
    client: str = "",
    hosts: int = 1,
) -> Calls:
    """Queue deliveries to `dead` receivers on this machine, then call a good one again and again.

    Args:
        engine: of the database that a running watchdog looks into; it must allow 127.0.0.0/8.
        client: whose deliveries the dead ones are; the good receiver is called for nobody.
        hosts: addresses that the dead ones are at.
    """
    with open_dead(dead, hosts) as urls:
        waiting = queue_deliveries(engine, [urls[number % dead] for number in range(deliveries)], are_repeats, client)
        receiver = Receiver(200)
        try:
            time.sleep(3)  # two looks of the watchdog
            seconds = [_call(engine, receiver) for _ in range(calls)]
        finally:
            receiver.close()
            with engine.begin() as connection:
                gone = update(WebhookDelivery).where(WebhookDelivery.job_id.in_(waiting))
                connection.execute(gone.values(state="failed"))
    return Calls(len(seconds), sum(one > WITHIN_SECONDS for one in seconds), max(seconds))


@contextmanager
def open_dead(count: int, hosts: int = 1) -> Iterator[list[str]]:
    """URLs of servers that take connections and say nothing, at so many addresses of this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, soft + count)), hard))
    addresses = ["127.0.0.1", *(f"127.7.{number // 200}.{number % 200 + 1}" for number in range(hosts - 1))]
    servers = [socket.create_server((addresses[number % hosts], 0), backlog=256) for number in range(count)]
    try:
        yield ["http://{}:{}".format(*server.getsockname()) for server in servers]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for server in servers:
            server.close()


def queue_deliveries(engine: Engine, urls: Sequence[str], are_repeats: bool = False, client: str = "") -> set[UUID]:
    """Write deliveries that are due, as of jobs that have completed; the ids of these."""
    now = datetime.now(UTC)
    attempt = {"time": (now - timedelta(minutes=1)).isoformat(), "status_code": None, "error": "ReadTimeout"}
    rows = [
        {
            "job_id": uuid4(),
            "event_key": "completed",
            "status": "completed",
            "url": url,
            "payload": {"status": "completed"},
            "attempts": [attempt] if are_repeats else [],
            "next_attempt_at": now,
            "client": client,
            "expires_at": now + KEPT_TRYING - timedelta(minutes=2),
        }
        for url in urls
    ]
    with engine.begin() as connection:
        connection.execute(insert(WebhookDelivery), rows)
    return {row["job_id"] for row in rows if isinstance(row["job_id"], UUID)}


def _call(engine: Engine, receiver: Receiver) -> float:
    job_id = uuid4()
    began = time.monotonic()
    add_delivery(engine, job_id, receiver.url, {"job_id": str(job_id), "status": "completed"})
    try:
        receiver.wait(str(job_id), 3 * WITHIN_SECONDS)
    except AssertionError:
        return 3 * WITHIN_SECONDS
    return time.monotonic() - began
