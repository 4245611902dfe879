"""Many listeners, slow ones and such as leave, over a real PostgreSQL: what one does costs the others nothing."""

import asyncio
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
import uvicorn
from starlette.exceptions import HTTPException

from api import channels
from api.dependencies import get_service
from api.main import create_app
from api.stream_limit import limit_streams
from api.streaming import encode_row, send_events
from jobs.clients.keys import KeyScope, create_key, revoke_key
from jobs.service.job import Job
from jobs.settings import Settings
from jobs.stack import postgres
from jobs.stack.database_urls import sibling_url
from jobs.status import TRAIN_STATUS_NAMES, JobStatus
from jobs.storage.events import write_event
from jobs.storage.tables import engine_for, migrate
from tests.bare_postgres import server
from tests.conftest import free_port, wait_until


class Jobs:
    """What streams need of a JobService: jobs in the state a test wants, and the database of their events."""

    def __init__(self, engine):
        self.engine = engine
        self.gets = 0
        self._jobs = {}

    def create(self):
        created_at = datetime.now(UTC)
        job = Job(uuid4(), "job", JobStatus.RUNNING, "normal", None, {}, created_at, created_at, None)
        self._jobs[job.id] = job
        return job

    def get(self, job_id, owner=None):
        self.gets += 1
        return self._jobs[UUID(str(job_id))]

    def cancel(self, job_id, owner=None):
        self._jobs[job_id] = replace(self._jobs[job_id], status=JobStatus.CANCELLED, ended_at=datetime.now(UTC))


@pytest.fixture(scope="module")
def settings():
    """Of a database with its tables; the other servers are not there."""
    with tempfile.TemporaryDirectory(prefix="tuneyard-streams-") as home, server(Path(home)) as url:
        postgres.ensure_databases(url, ["tuneyard"])
        database_url = sibling_url(url, "tuneyard")
        migrate(database_url)
        nowhere = f"http://127.0.0.1:{free_port()}"
        yield Settings(home=Path(home), database_url=database_url, prefect_api_url=nowhere, mlflow_tracking_uri=nowhere)


@pytest.fixture(scope="module")
def service(settings):
    engine = engine_for(settings.database_url)
    yield Jobs(engine)
    engine.dispose()


@pytest.fixture
def job(service):
    """A job to which nothing happens unless the test does it."""
    return service.create()


@contextmanager
def served(settings, service):
    """The app at a server of its own in this process, and a client."""
    port, app = free_port(), create_app(settings)
    app.dependency_overrides[get_service] = lambda: service
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:
        thread.start()
        wait_until(lambda: server.started, 90)
        yield app, client
        server.should_exit = True
        thread.join()
    app.state.access.close()


@pytest.fixture(scope="module")
def api(settings, service):
    with served(settings, service) as (app, client):
        yield app, client


def write(service, job, count, first=0):
    with service.engine.begin() as connection:
        for number in range(first, first + count):
            write_event(connection, job.id, "step", {"step": number})


def steps(text):
    data = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
    return [entry["step"] for entry in data if "step" in entry]


def test_a_request_that_waits_when_the_service_stops_is_told_to_try_again(settings, service):
    began = []

    async def wait():
        began.append(1)
        await asyncio.sleep(90)

    with ThreadPoolExecutor() as pool, served(settings, service) as (app, client):
        paths = ("/slow", "/v1/slow")
        for path in paths:
            app.add_api_route(path, wait)
        asked = [pool.submit(httpx.get, client.base_url.join(path), timeout=30) for path in paths]
        wait_until(lambda: len(began) == len(paths), 90)
    ours, openais = (one.result() for one in asked)
    told = "The service is stopping and could not respond in time; try again"
    assert [one.status_code for one in (ours, openais)] == [503, 503]
    assert (ours.json()["code"], ours.json()["detail"]) == ("busy", told)
    assert openais.json()["error"] == {"message": told, "type": "server_error", "param": None, "code": "busy"}
    assert openais.headers["Retry-After"] == "2"


def test_a_comment_is_sent_when_nothing_happens_and_the_end_when_the_job_has_ended(service, job):
    async def collect():
        hub, chunks = channels.EventHub(encode_row), []
        async for chunk in send_events(hub, service, job, 0, TRAIN_STATUS_NAMES, heartbeat_seconds=0.3):
            chunks.append(chunk)
            if len(chunks) == 2:
                await asyncio.to_thread(service.cancel, job.id)
        return chunks

    *comments, end = asyncio.run(asyncio.wait_for(collect(), 90))
    assert len(comments) >= 2
    assert set(comments) == {b": still here\n\n"}
    assert b"event: end\n" in end
    assert b'"status": "cancelled"' in end


def test_a_job_is_asked_for_once_however_many_listen(api, service, job, monkeypatch):
    app, client = api
    asked, read = [], channels.read_news
    monkeypatch.setattr(channels, "read_news", lambda *given: (asked.append(1), read(*given))[1])  # only counts
    texts = []

    def listen():
        texts.append(client.get(f"/train/{job.id}/events").text)

    listeners = [threading.Thread(target=listen, daemon=True) for _ in range(40)]
    for thread in listeners:
        thread.start()
    wait_until(lambda: app.state.streams.listeners == 40, 60)
    asked.clear()
    gets = service.gets
    began_at = time.monotonic()
    for number in range(3):
        write(service, job, 1, number)
        time.sleep(1)
    seconds = time.monotonic() - began_at
    assert len(asked) <= seconds + 2
    assert service.gets - gets <= seconds / 2 + 2
    service.cancel(job.id)
    for thread in listeners:
        thread.join(90)

    assert [steps(text) for text in texts] == [[0, 1, 2]] * 40
    assert {text.count("event: end") for text in texts} == {1}


def test_a_client_that_goes_away_ends_the_work_for_it(api, job):
    app, client = api
    with ExitStack() as streams:
        for _ in range(3):
            streams.enter_context(client.stream("GET", f"/train/{job.id}/events"))
        wait_until(lambda: app.state.streams.listeners == 3, 30)
    wait_until(lambda: app.state.streams.listeners == 0, 30)
    wait_until(lambda: not app.state.streams.is_polling and app.state.stream_limit.open == 0, 30)


def test_a_listener_that_does_not_read_holds_up_nobody_and_misses_nothing(api, service, job):
    _, client = api
    with client.stream("GET", f"/train/{job.id}/events") as slow:
        with client.stream("GET", f"/train/{job.id}/events") as quick:
            lines = quick.iter_lines()
            for first in (0, 600, 1200):
                write(service, job, 600, first)
                began_at, seen = time.monotonic(), []
                while len(seen) < 600:
                    seen += steps(next(lines))
                assert seen == [*range(first, first + 600)]
                assert time.monotonic() - began_at < 25  # of the client's thirty
        service.cancel(job.id)
        assert steps(slow.read().decode()) == [*range(1800)]


def test_more_streams_than_a_client_may_have_are_refused_with_the_limit(settings, service, job):
    with served(settings.model_copy(update={"max_streams": 2}), service) as (app, client):
        paths = [f"/train/{job.id}/events", f"/api/sft/jobs/{job.id}/events"]
        with ExitStack() as streams:
            for path in paths:
                streams.enter_context(client.stream("GET", path))
            wait_until(lambda: app.state.stream_limit.open == 2, 30)
            for path in [*paths, f"/train/{job.id}/logs?follow=true"]:
                refused = client.get(path)
                assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
                assert "At most 2 streams" in refused.json()["detail"]
                assert "TUNEYARD_MAX_STREAMS" in refused.json()["detail"]
                assert refused.headers["Retry-After"] == "5"
            assert client.get(f"/train/{job.id}").status_code == 200
        wait_until(lambda: app.state.stream_limit.open == 0, 30)


def test_clients_are_counted_apart_and_all_together():
    limit = limit_streams(per_client=2, total=3)
    with limit.held("key a"), limit.held("key a"), limit.held("key b"):
        with pytest.raises(HTTPException, match="At most 2"), limit.held("key a"):
            pass
        with pytest.raises(HTTPException, match="has 3 streams open"), limit.held("key b"):
            pass
    assert limit.open == 0


@pytest.mark.parametrize("had_keys", [True, False], ids=["revoked", "opened without a key"])
def test_a_stream_ends_soon_after_its_client_lost_its_right(settings, service, job, had_keys):
    """It had gone on until the job had ended: for days, say. Others go on."""
    keys_database = f"keys{had_keys}".lower()
    postgres.ensure_databases(settings.database_url, [keys_database])
    url = sibling_url(settings.database_url, keys_database)
    migrate(url)
    engine = engine_for(url)
    home = settings.home / keys_database
    record, key = create_key(engine, "leaves", KeyScope.READ) if had_keys else (None, None)
    _, other_key = create_key(engine, "stays", KeyScope.READ) if had_keys else (None, None)
    path = f"/train/{job.id}/events"
    with served(settings.model_copy(update={"home": home, "database_url": url}), service) as (app, client):
        given = [{"X-API-Key": one} if one else {} for one in (key, other_key)]
        with client.stream("GET", path, headers=given[0]) as leaving:
            assert leaving.status_code == 200
            if had_keys:
                with client.stream("GET", path, headers=given[1]) as staying:
                    revoke_key(engine, str(record.id))
                    ended = leaving.read()
                    wait_until(lambda: app.state.streams.listeners == 1, 30)
                    assert app.state.streams.listeners == 1
                    assert staying.status_code == 200
            else:
                create_key(engine, "first", KeyScope.READ)
                ended = leaving.read()
        assert b"event: end" not in ended
        assert client.get(path, headers=given[0]).status_code == 401
    engine.dispose()
