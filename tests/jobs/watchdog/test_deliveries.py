"""The watchdog's duties with webhooks, run in this process on a database of their own, which may go away."""

import json
import socket
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import psycopg2
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.states import Cancelled
from sqlalchemy import NullPool, create_engine, make_url, update
from sqlalchemy.exc import OperationalError

from jobs.service.job_service import JobService
from jobs.spec import JobSpec
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.events import write_event
from jobs.storage.tables import Watermark, WebhookDelivery, engine_for, migrate
from jobs.watchdog.clock_steps import ClockSteps
from jobs.watchdog.deliveries import Deliverer
from jobs.webhooks import shares
from jobs.webhooks.call import build_event_payload
from jobs.webhooks.outbox import add_delivery, forget_old_deliveries, list_deliveries
from tests.conftest import wait_until
from tests.live_service import wait_until_idle
from tests.receiver import Receiver

pytestmark = pytest.mark.stack

AT_ONCE = 10
CONFIG = {"base_model": "nobody/deliveries", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}


@pytest.fixture(scope="module")
def database_url(stack):
    """A database that no other watchdog looks into."""
    ensure_databases(stack.database_url, ["deliveries"])
    url = sibling_url(stack.database_url, "deliveries")
    migrate(url)
    return url


@pytest.fixture
def engine(database_url):
    return engine_for(database_url)


@pytest.fixture
def patient(monkeypatch):
    """Who calls a dead receiver is busy for as long as the test lasts."""
    monkeypatch.setattr("jobs.webhooks.call.TIMEOUT_SECONDS", 120.0)


@pytest.fixture
def receiver():
    with closing(Receiver(200)) as receiver:
        yield receiver


def list_dead(count):
    """Servers that take connections and never say anything."""
    return [socket.create_server(("127.0.0.1", 0), backlog=256) for _ in range(count)]


def add_many(engine, urls):
    rows = [
        {"job_id": uuid4(), "event_key": "completed", "status": "completed", "url": url, "payload": {"job_id": "x"}}
        | {"attempts": [], "next_attempt_at": datetime.now(UTC), "expires_at": datetime.now(UTC) + timedelta(days=3)}
        for url in urls
    ]
    with engine.begin() as connection:
        connection.execute(WebhookDelivery.__table__.insert(), rows)
    return {row["job_id"] for row in rows}


def give_up(engine, job_ids):
    with engine.begin() as connection:
        connection.execute(update(WebhookDelivery).where(WebhookDelivery.job_id.in_(job_ids)).values(state="failed"))


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("dead", [1, 12])
@pytest.mark.parametrize("are_repeats", [False, True], ids=["first attempts", "repeats"])
def test_a_receiver_is_called_beside_a_thousand_deliveries_to_dead_ones(stack, engine, receiver, dead, are_repeats):
    servers = list_dead(dead)
    urls = [
        f"http://127.0.0.1:{server.getsockname()[1]}/{number}" for number in range(1000 // dead) for server in servers
    ]
    waiting = add_many(engine, urls)
    if are_repeats:
        attempt = [{"time": datetime.now(UTC).isoformat(), "status_code": None, "error": "ReadTimeout"}]
        with engine.begin() as connection:
            connection.execute(
                update(WebhookDelivery).where(WebhookDelivery.job_id.in_(waiting)).values(attempts=attempt)
            )
    check_it_is_called(stack, engine, receiver, servers, waiting)


SPELLINGS = {
    "query": "http://127.0.0.1:{port}?{number}",
    "fragment": "http://127.0.0.1:{port}#{number}",
    "port": "http://127.0.0.1:{zeros}{port}/",
    "host": "http://localhost{dots}:{port}/",
}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("form", SPELLINGS.values(), ids=SPELLINGS)
def test_a_dead_receiver_has_one_share_however_it_is_spelled(stack, engine, receiver, form):
    servers = list_dead(1)
    port = servers[0].getsockname()[1]
    urls = [form.format(port=port, number=n, zeros="0" * n, dots="." * n) for n in range(1100)]
    check_it_is_called(stack, engine, receiver, servers, add_many(engine, urls))


def check_it_is_called(stack, engine, receiver, servers, waiting):
    duty = Deliverer(engine, stack, httpx.Client())
    try:
        for _ in range(3):
            duty.send_due()
            time.sleep(0.3)
        job_id = uuid4()
        add_delivery(engine, job_id, receiver.url, {"job_id": str(job_id), "status": "completed"})
        duty.send_due()
        receiver.wait(str(job_id), 60)
    finally:
        for server in servers:
            server.close()
        give_up(engine, waiting)


def test_attempts_that_find_their_address_busy_are_made_later_and_not_counted(stack, engine, receiver, monkeypatch):
    monkeypatch.setattr(shares, "FIRST_AT_ONE_ADDRESS", 0)
    duty = Deliverer(engine, stack, httpx.Client())
    job_id = uuid4()
    add_delivery(engine, job_id, receiver.url, {"job_id": str(job_id), "status": "completed"})
    duty.send_due()
    wait_until(lambda: not duty._shares._taken, 60)
    (delivery,) = list_deliveries(engine, job_id)
    assert (delivery.state, delivery.attempts) == ("pending", [])
    assert delivery.next_attempt_at - datetime.now(UTC) < timedelta(seconds=5)  # which is not long after now
    monkeypatch.undo()
    wait_until(lambda: duty.send_due() or bool(receiver.received), 60)


@pytest.fixture
def prefect(stack):
    """A client of Prefect that notes how many runs each answer held."""

    def note(answer):
        if answer.request.url.path.endswith("/filter"):
            client.runs_read.append(len(json.loads(answer.read())))

    with httpx.Client(base_url=stack.prefect_api_url, timeout=30, event_hooks={"response": [note]}) as client:
        client.runs_read = []
        yield client


def test_a_database_that_was_away_does_not_end_the_sending(stack, database_url, engine, receiver):
    is_away = [True]

    def connect():
        if is_away:
            raise psycopg2.OperationalError("the database system is shutting down")
        return psycopg2.connect(make_url(database_url).set(drivername="postgresql").render_as_string(False))

    faulty = create_engine("postgresql+psycopg2://", creator=connect, poolclass=NullPool)
    duty = Deliverer(faulty, stack, httpx.Client())
    for _ in range(AT_ONCE + 1):
        with pytest.raises(OperationalError):
            duty.send_due()
    is_away.clear()
    for _ in range(2):  # each sender is free again, after the failures and after its first delivery
        job_ids = [str(uuid4()) for _ in range(AT_ONCE)]
        for job_id in job_ids:
            add_delivery(engine, job_id, receiver.url, {"job_id": job_id, "status": "completed"})

        def are_told(wanted=frozenset(job_ids)):
            duty.send_due()
            return wanted <= {body["job_id"] for body in receiver.received}

        wait_until(are_told, 60)


def test_ended_jobs_are_read_once_and_each_of_them_is_told(stack, engine, prefect, receiver):
    duty = Deliverer(engine, stack, prefect)
    wait_until_idle(stack)  # no job of another test ends meanwhile
    with closing(JobService(stack)) as service:
        service.client.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=True))
        try:

            def end_job():
                """As it ends when nobody is left to put it down."""
                job = service.create(JobSpec.build(config=CONFIG, webhook_url=receiver.url))
                service.client.set_flow_run_state(job.id, Cancelled(), force=True)
                return job.id

            first = [end_job() for _ in range(3)]
            duty.add_missing()
            assert prefect.runs_read[-1] >= 3
            answers = len(prefect.runs_read)
            duty.add_missing()
            assert len(prefect.runs_read) == answers  # counting told enough
            last = end_job()
            duty.add_missing()
            assert prefect.runs_read[-1] == 1
            with engine.begin() as connection:  # the clock was an hour ahead until now
                connection.execute(update(Watermark).values(reached_at=datetime.now(UTC) + timedelta(hours=1)))
            later = end_job()
            duty.add_missing()
        finally:
            service.client.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=False))
    for job_id in (*first, last, later):
        (delivery,) = list_deliveries(engine, job_id)
        assert (delivery.event, delivery.status) == ("ended", "cancelled")
    Deliverer(engine, stack, prefect).add_missing()  # another process, which has seen none of them
    assert len(list_deliveries(engine, last)) == 1


def test_a_start_is_told_once_and_a_checkpoint_once_a_step(engine):
    job_id = uuid4()

    def tell(event, **details):
        payload = build_event_payload(job_id, event, details)
        return add_delivery(engine, job_id, "http://127.0.0.1:1/", payload)

    assert tell("started")
    assert not tell("started")
    assert tell("checkpoint", step=10, path="/out/checkpoint-10")
    assert not tell("checkpoint", step=10, path="/out/checkpoint-10")
    assert tell("checkpoint", step=20, path="/out/checkpoint-20")
    assert add_delivery(engine, job_id, "http://127.0.0.1:1/", {"job_id": str(job_id), "status": "completed"})
    told = [
        (delivery.event, delivery.status, delivery.payload.get("step")) for delivery in list_deliveries(engine, job_id)
    ]
    assert told == [("started", "running", None), ("checkpoint", "running", 10), ("checkpoint", "running", 20),
                    ("ended", "completed", None)]  # fmt: skip


def make_delivery(engine, age_days, state):
    job_id = uuid4()
    add_delivery(engine, job_id, "http://127.0.0.1:1/", {"job_id": str(job_id), "status": "failed"})
    then = datetime.now(UTC) - timedelta(days=age_days)
    with engine.begin() as connection:
        wanted = update(WebhookDelivery).where(WebhookDelivery.job_id == job_id)
        connection.execute(wanted.values(state=state, created_at=then))
    return job_id


def test_what_was_told_long_ago_is_forgotten_and_what_waits_or_goes_on_is_not(engine):
    old = [make_delivery(engine, 31, state) for state in ("delivered", "failed", "gone")]
    newer, waiting = make_delivery(engine, 29, "delivered"), make_delivery(engine, 31, "pending")
    running = make_delivery(engine, 31, "delivered")
    with engine.begin() as connection:
        write_event(connection, running, "step", {"step": 1})
    assert forget_old_deliveries(engine, 30) == 3
    assert [len(list_deliveries(engine, job_id)) for job_id in old] == [0, 0, 0]
    assert [len(list_deliveries(engine, job_id)) for job_id in (newer, waiting, running)] == [1, 1, 1]


def test_a_clock_that_is_set_back_holds_up_no_delivery(engine):
    job_id = make_delivery(engine, 0, "pending")
    steady, ahead = 1000.0, 3600.0
    duty = ClockSteps(engine, wall=lambda: steady + ahead, steady=lambda: steady)
    with engine.begin() as connection:
        due = datetime.now(UTC) + timedelta(seconds=3610)  # as it was written while the clock was an hour ahead
        expires = due + timedelta(days=1)
        times = {"next_attempt_at": due, "expires_at": expires}
        connection.execute(update(WebhookDelivery).where(WebhookDelivery.job_id == job_id).values(**times))

    def left():
        (delivery,) = list_deliveries(engine, job_id)
        return (due - delivery.next_attempt_at).total_seconds(), (expires - delivery.expires_at).total_seconds()

    duty.look()
    steady += 60
    duty.look()
    assert left() == (0, 0)
    steady, ahead = steady + 2, 0.0
    duty.look()
    assert left() == (3600, 3600)
    steady, ahead = steady + 2, 7200.0  # set forward: what is due is due the sooner
    duty.look()
    assert left() == (3600, 3600)
