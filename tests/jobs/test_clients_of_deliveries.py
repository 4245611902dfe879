"""Webhooks of one client's jobs keep none of another client's waiting, however many addresses they lead to."""

import socket
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from jobs.lifecycle.ends import keep_run
from jobs.settings import Settings
from jobs.storage.tables import WebhookDelivery, engine_for, migrate
from jobs.watchdog.deliveries import Deliverer
from jobs.webhooks.outbox import add_delivery, find_due, list_deliveries
from tests import bare_postgres
from tests.conftest import wait_until
from tests.receiver import Receiver

DEAD = 300  # addresses, more than there are senders
ATTEMPT = [{"time": datetime.now(UTC).isoformat(), "status_code": None, "error": "ReadTimeout"}]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A database that nobody else looks into."""
    home = tmp_path_factory.mktemp("deliveries")
    with bare_postgres.server(home) as url:
        migrate(url)
        yield Settings(home=home, database_url=url, webhook_allow=["127.0.0.0/8"])
        engine_for(url).dispose()


@pytest.fixture
def engine(settings):
    engine = engine_for(settings.database_url)
    yield engine
    with engine.begin() as connection:
        connection.execute(WebhookDelivery.__table__.delete())


@pytest.fixture
def duty(settings, engine, monkeypatch):
    """Who calls a dead receiver is busy for as long as a test lasts."""
    monkeypatch.setattr("jobs.webhooks.call.TIMEOUT_SECONDS", 120.0)
    duty = Deliverer(engine, settings, httpx.Client())
    yield duty
    wait_until(lambda: not duty._shares._taken, 60)


@pytest.fixture
def dead_urls(duty):
    """Servers at as many addresses that take connections and say nothing."""
    with ExitStack() as opened:
        servers = [
            opened.enter_context(closing(socket.create_server((f"127.7.{number // 200}.{number % 200 + 1}", 0))))
            for number in range(DEAD)
        ]
        yield ["http://{}:{}/".format(*server.getsockname()) for server in servers]


def add_many(engine, urls, client, attempts=()):
    now = datetime.now(UTC)
    row = {"event_key": "completed", "status": "completed", "payload": {"job_id": "x"}, "attempts": [*attempts]}
    times = {"next_attempt_at": now, "expires_at": now + timedelta(days=2)}
    with engine.begin() as connection:
        rows = [{**row, **times, "job_id": uuid4(), "url": url, "client": client} for url in urls]
        connection.execute(WebhookDelivery.__table__.insert(), rows)


def add_one(engine, url, client):
    """As it comes to be: the job was submitted by this client."""
    job_id = uuid4()
    with engine.begin() as connection:
        keep_run(connection, job_id, {"name": "any"}, client=client)
    add_delivery(engine, job_id, url, {"job_id": str(job_id), "status": "completed"})
    return job_id


@pytest.mark.parametrize("attempts", [(), ATTEMPT], ids=["first attempts", "repeats"])
def test_a_client_that_names_many_dead_addresses_keeps_no_other_waiting(engine, duty, dead_urls, attempts):
    add_many(engine, [dead_urls[number % DEAD] for number in range(1000)], "key of an attacker", attempts)
    for _ in range(3):
        duty.send_due()
    with closing(Receiver(200)) as receiver:  # of which nobody has heard before
        for _ in range(3):
            job_id = add_one(engine, receiver.url, "key of another one")
            assert list_deliveries(engine, job_id)[0].client == "key of another one"
            duty.send_due()
            receiver.wait(str(job_id), 60)


def test_of_one_client_hosts_that_have_failed_leave_room_for_one_that_has_not(engine, duty, dead_urls):
    add_many(engine, dead_urls, "key", ATTEMPT)
    add_many(engine, dead_urls, "key")  # first attempts at hosts that others have failed at
    for _ in range(3):
        duty.send_due()
    with closing(Receiver(200)) as receiver:
        job_id = add_one(engine, receiver.url, "key")
        assert find_due(engine, 1)[0].url == receiver.url
        duty.send_due()
        receiver.wait(str(job_id), 60)


def test_a_client_is_looked_at_however_many_deliveries_of_another_one_are_due(engine):
    add_many(engine, [f"http://127.0.0.1:{port}/" for port in range(1, 1500)], "key of an attacker")
    job_id = add_one(engine, "http://127.0.0.1:1/", "key of another one")
    (delivery,) = list_deliveries(engine, job_id)
    assert delivery.id in [due.id for due in find_due(engine, 2)]
