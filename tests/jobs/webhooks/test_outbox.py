"""Deliveries by the watchdog of a real stack: repeated until they are taken, given up where they must be."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from jobs.errors import DeliveryNotFound
from jobs.stack import local as local_stack
from jobs.stack.parts import stack_environment
from jobs.storage.tables import WebhookDelivery, engine_for
from jobs.webhooks.call import CallOutcome
from jobs.webhooks.outbox import (
    KEPT_TRYING,
    add_delivery,
    keep_attempt,
    list_deliveries,
    message_id,
    pause_seconds,
    resend,
)
from tests.conftest import WEBHOOK_SECRETS, free_port, wait_until
from tests.receiver import Receiver

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def engine(stack):
    log = stack.home / "logs" / "watchdog.log"  # it starts last, and nobody waits for it
    wait_until(lambda: "Active, with the tasks" in log.read_text(), 90)
    return engine_for(stack.database_url)


@pytest.fixture
def receive():
    opened = []

    def start(*statuses, **settings):
        opened.append(Receiver(*statuses, **settings))
        return opened[-1]

    yield start
    for receiver in opened:
        receiver.close()


def tell(engine, url):
    job_id = uuid4()
    assert add_delivery(engine, job_id, url, {"job_id": str(job_id), "status": "completed"})
    return job_id


def only(engine, job_id):
    (delivery,) = list_deliveries(engine, job_id)
    return delivery


def answers(engine, job_id):
    return [attempt["status_code"] for attempt in only(engine, job_id).attempts]


def test_one_end_of_a_job_is_put_down_once_and_told_within_a_second(engine, receive):
    receiver = receive(200)

    def measure():
        job_id = uuid4()
        payload = {"job_id": str(job_id), "status": "failed"}
        added = [add_delivery(engine, job_id, receiver.url, payload) for _ in range(3)]
        began = time.monotonic()
        assert receiver.wait(str(job_id)) == payload
        seconds = time.monotonic() - began
        assert added == [True, False, False]
        wait_until(lambda: only(engine, job_id).state == "delivered", 30)
        assert (answers(engine, job_id), only(engine, job_id).next_attempt_at) == ([200], None)
        return seconds

    assert any(measure() < 1 for _ in range(8))  # on a busy machine some take longer


def test_a_receiver_that_is_down_at_first_is_told_once_it_is_up(engine, receive):
    port = free_port()
    job_id = tell(engine, f"http://127.0.0.1:{port}/hook")
    wait_until(lambda: only(engine, job_id).attempts != [], 30)
    receiver = receive(200, port=port)
    receiver.wait(str(job_id))

    wait_until(lambda: only(engine, job_id).state == "delivered", 30)
    attempts = only(engine, job_id).attempts
    assert attempts[0]["status_code"] is None
    assert attempts[0]["error"].startswith("no connection: ")
    assert attempts[-1]["status_code"] == 200


def test_repetitions_bear_the_same_id_a_new_time_and_valid_signatures(engine, receive):
    receiver = receive(500, 302, 200)
    job_id = tell(engine, receiver.url)
    wait_until(lambda: only(engine, job_id).state == "delivered", 90)

    assert answers(engine, job_id) == [500, 302, 200]
    assert [headers["webhook-id"] for headers, _ in receiver.requests] == [message_id(only(engine, job_id))] * 3
    times = [int(headers["webhook-timestamp"]) for headers, _ in receiver.requests]
    assert times[0] < times[1] < times[2]
    for headers, body in receiver.requests:
        for secret in WEBHOOK_SECRETS:
            assert Webhook(secret).verify(body, headers) == receiver.received[0]


def test_gone_ends_it_until_it_is_sent_again_by_hand(engine, receive):
    receiver = receive(410, 200)
    job_id = tell(engine, receiver.url)
    wait_until(lambda: only(engine, job_id).state == "gone", 30)
    assert only(engine, job_id).next_attempt_at is None

    assert resend(engine, job_id, str(only(engine, job_id).id)).state == "pending"
    wait_until(lambda: only(engine, job_id).state == "delivered", 30)
    assert answers(engine, job_id) == [410, 200]
    for unknown in (str(uuid4()), "nonsense"):
        with pytest.raises(DeliveryNotFound, match=unknown):
            resend(engine, job_id, unknown)


def test_retry_after_is_waited_for(engine, receive):
    receiver = receive(503, 200, headers={"Retry-After": "5"})
    job_id = tell(engine, receiver.url)
    wait_until(lambda: only(engine, job_id).state == "delivered", 90)

    first, second = (datetime.fromisoformat(attempt["time"]) for attempt in only(engine, job_id).attempts)
    assert timedelta(seconds=5) <= second - first < timedelta(seconds=40)


@pytest.fixture
def waiting(engine):
    """A delivery whose next attempt is so far away that the watchdog leaves it alone."""
    now = datetime.now(UTC)
    row = WebhookDelivery(
        job_id=uuid4(), event_key="failed", status="failed", url="http://127.0.0.1:1/", payload={},
        next_attempt_at=now + KEPT_TRYING, expires_at=now + KEPT_TRYING,
    )  # fmt: skip
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add(row)
    return row


@pytest.mark.parametrize("date", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "\x80"])
def test_whatever_an_answer_holds_the_delivery_ends(engine, receive, date):
    job_id = tell(engine, receive(200, headers={"Retry-After": date}).url)
    wait_until(lambda: only(engine, job_id).state == "delivered", 30)
    assert answers(engine, job_id) == [200]


@pytest.mark.parametrize("seconds", [7 * 86400.0, 1e12, 1e300])
def test_after_three_days_it_has_failed_and_no_wait_is_longer(engine, waiting, seconds):
    before, after = waiting.expires_at - timedelta(seconds=1), waiting.expires_at + timedelta(seconds=1)
    keep_attempt(engine, waiting, before, CallOutcome(503, None, seconds))
    kept = only(engine, waiting.job_id)
    assert (kept.state, kept.next_attempt_at) == ("pending", waiting.expires_at)

    keep_attempt(engine, waiting, after, CallOutcome(error="ConnectError"))
    kept = only(engine, waiting.job_id)
    assert (kept.state, kept.next_attempt_at, len(kept.attempts)) == ("failed", None, 2)


def test_pauses_grow_differ_and_add_up_to_three_days_of_few_calls():
    means = [sum(pause_seconds(tried) for _ in range(200)) / 200 for tried in range(1, 40)]
    assert means[:4] == pytest.approx([2, 6, 18, 54], rel=0.1)
    assert len({pause_seconds(3) for _ in range(20)}) == 20
    assert max(means) == pytest.approx(4 * 3600, rel=0.1)
    calls = next(count for count in range(40) if sum(means[:count]) > KEPT_TRYING.total_seconds())
    assert 20 <= calls <= 30


def test_a_killed_watchdog_comes_back_one_at_a_time_and_misses_nothing(engine, stack, receive, tmp_path):
    def watchdog():
        return next(part.pid for part in local_stack.status(stack) if part.name == "watchdog")

    receiver, log = receive(200), tmp_path / "standby.log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "jobs.watchdog"]
        standby = subprocess.Popen(command, env=stack_environment(stack), stdout=out, stderr=out)
    try:
        time.sleep(3)
        assert "Active, with the tasks" not in log.read_text()
        killed = watchdog()
        os.kill(killed, signal.SIGKILL)
        job_id = tell(engine, receiver.url)
        receiver.wait(str(job_id))
        wait_until(lambda: only(engine, job_id).state == "delivered", 30)  # by whichever of the two
        wait_until(lambda: watchdog() not in (killed, None), 60)
    finally:
        standby.kill()
        standby.wait()
    time.sleep(1)
    assert len(receiver.requests) == 1
