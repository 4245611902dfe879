"""API keys as a client meets them."""

import socket
import time
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, select, text
from sqlalchemy.event import listen
from sqlalchemy.orm import Session

from api.auth import warn_if_open_to_others
from api.main import create_app
from jobs.clients.keys import TTL_SECONDS, ApiKeySnapshot, KeyScope, create_key, hash_key, list_keys, revoke_key
from jobs.storage.bounded_postgres import bounded_engine_for
from jobs.storage.tables import ApiKey, engine_for

pytestmark = pytest.mark.stack

PUBLIC = ["/", "/health", "/ready", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css"]
PRIVATE = ["/train", "/queue", "/metrics", "/api/sft/jobs", "/nowhere", "/docsx", "/docs/../train", "/TRAIN"]


@pytest.fixture
def settings(own_database):
    return own_database


@pytest.fixture
def engine(settings):
    return engine_for(settings.database_url)


@pytest.fixture
def api(settings):
    return TestClient(create_app(settings))


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_without_any_key_everything_is_open(api):
    assert [api.get(path).status_code for path in ("/queue", "/train", "/api/sft/jobs", "/metrics")] == [200] * 4


def test_with_a_key_only_public_paths_answer_without_it(api, engine):
    _, key = create_key(engine, "ci", KeyScope.READ)

    answers = {path: api.get(path).status_code for path in PUBLIC}
    assert answers.pop("/ready") == 503  # no watchdog looks after this database
    assert set(answers.values()) == {200}
    for path in PRIVATE:
        answer = api.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json() == {
            "detail": "An API key is required: send it as Authorization: Bearer KEY",
            "code": "unauthorized",
            "request_id": answer.headers["X-Request-ID"],
        }
    assert api.get("/queue", headers=bearer(key)).status_code == 200
    assert api.get("/queue", headers={"X-API-Key": key}).status_code == 200
    assert api.get("/queue", headers={"Authorization": "Basic abc", "X-API-Key": key}).status_code == 200


@pytest.mark.parametrize("wrong", ["ty_nobody", "", "\x80", "ty_" + "x" * 9000])
def test_a_wrong_key_is_refused(api, engine, wrong):
    create_key(engine, "ci", KeyScope.ADMIN)

    for headers in ({"Authorization": f"Bearer {wrong}".encode("latin-1")}, {"X-API-Key": wrong.encode("latin-1")}):
        assert api.get("/queue", headers=headers).status_code == 401


@pytest.mark.parametrize(("scope", "status"), [(KeyScope.READ, 403), (KeyScope.SUBMIT, 404), (KeyScope.ADMIN, 404)])
def test_scopes(api, engine, scope, status):
    _, key = create_key(engine, "ci", scope)
    unknown = f"/train/{uuid4()}"

    assert api.get("/train", headers=bearer(key)).status_code == 200
    answer = api.delete(unknown, headers=bearer(key))
    assert answer.status_code == status
    assert api.post(f"/api/sft/jobs/{uuid4()}/stop", headers=bearer(key)).status_code == status
    if status == 403:
        assert answer.json()["code"] == "forbidden"
        assert answer.json()["detail"] == "This API key has scope read; DELETE needs submit"


def test_a_revoked_key_stops_working_soon_and_the_service_stays_closed(api, engine):
    record, key = create_key(engine, "ci", KeyScope.SUBMIT)
    assert api.get("/queue", headers=bearer(key)).status_code == 200

    revoke_key(engine, str(record.id))
    deadline = time.monotonic() + 5 * TTL_SECONDS
    while api.get("/queue", headers=bearer(key)).status_code == 200:
        assert time.monotonic() < deadline, "a revoked key works on"
        time.sleep(0.1)
    assert api.get("/queue").status_code == 401


def empty(engine):
    with Session(engine) as session, session.begin():
        session.execute(delete(ApiKey))


def drop(engine):
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE api_keys"))


@pytest.mark.parametrize("loss", [empty, drop])
def test_a_database_that_lost_its_keys_opens_nothing(api, settings, engine, loss):
    _, key = create_key(engine, "ci", KeyScope.READ)
    assert api.get("/queue", headers=bearer(key)).status_code == 200

    loss(engine)
    time.sleep(TTL_SECONDS + 0.1)
    restarted = TestClient(create_app(settings))
    for client in (api, restarted):
        for headers in ({}, bearer(key), bearer("ty_x")):
            answer = client.get("/queue", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (503, "stack_unavailable")
        assert client.get("/metrics").status_code in (401, 503)


def test_a_new_key_ends_the_wait_for_lost_ones(api, engine):
    _, key = create_key(engine, "ci", KeyScope.READ)
    assert api.get("/queue", headers=bearer(key)).status_code == 200
    empty(engine)
    time.sleep(TTL_SECONDS + 0.1)
    assert api.get("/queue").status_code == 503

    _, key = create_key(engine, "again", KeyScope.READ)
    assert api.get("/queue").status_code == 401
    assert api.get("/queue", headers=bearer(key)).status_code == 200


def test_a_new_key_works_within_two_seconds_of_an_open_ring(api, engine):
    create_key(engine, "first", KeyScope.READ)
    assert api.get("/queue").status_code == 401

    _, key = create_key(engine, "second", KeyScope.READ)
    time.sleep(1.1)
    assert api.get("/queue", headers=bearer(key)).status_code == 200


def test_who_is_refused_too_often_is_told_when_to_come_back_and_a_key_is_let_through(settings, engine):
    _, key = create_key(engine, "ci", KeyScope.READ)
    api = TestClient(create_app(settings.model_copy(update={"rate_limit": "3/minute"})))
    wrong = [{}, bearer("ty_x"), {"X-API-Key": "ty_y"}]

    assert [api.get("/queue", headers=headers).status_code for headers in wrong] == [401, 401, 401]
    refused = api.get("/queue", headers=bearer("ty_z"))
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert api.get("/train").status_code == 429
    assert api.get("/health").status_code == 200
    assert [api.get("/queue", headers=bearer(key)).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_only_a_hash_is_kept(engine):
    record, key = create_key(engine, "ci", KeyScope.SUBMIT)

    with Session(engine) as session:
        row = session.execute(select(ApiKey.__table__)).one()
    assert key not in repr(row)
    assert row.key_sha256 == hash_key(key)
    assert key.startswith(record.prefix)
    assert [kept.id for kept in list_keys(engine)] == [record.id]
    assert len(key) == 46


def test_a_key_can_be_required_before_one_is_made(settings):
    api = TestClient(create_app(settings.model_copy(update={"require_api_key": True})))

    assert api.get("/queue").status_code == 401
    assert api.get("/queue", headers=bearer("ty_x")).status_code == 401
    assert api.get("/health").status_code == 200


def test_requests_cost_no_query_while_the_keys_are_fresh(api, engine, monkeypatch):
    monkeypatch.setattr("jobs.clients.keys.TTL_SECONDS", 60.0)  # twenty requests may take longer than a few seconds
    _, key = create_key(engine, "ci", KeyScope.READ)
    queries = []
    asked = bounded_engine_for(engine.url.render_as_string(hide_password=False))
    listen(asked, "before_cursor_execute", lambda _connection, _cursor, statement, *_: queries.append(statement))

    assert [api.get("/metrics", headers=bearer(key)).status_code for _ in range(20)] == [200] * 20
    assert len([query for query in queries if "api_keys" in query]) == 1


def test_listening_to_others_without_a_key_is_said_loudly(stack, caplog):
    with socket.socket() as beyond:
        beyond.bind(("0.0.0.0", 0))  # noqa: S104 - that is what is tested
        beyond.listen()
        warn_if_open_to_others(ApiKeySnapshot({}, is_open=True), stack)
        assert "NO API KEY IS SET and the API listens on 0.0.0.0" in said(caplog)
        caplog.clear()
        warn_if_open_to_others(ApiKeySnapshot({}, is_open=False), stack)
        assert said(caplog) == ""


def said(caplog):
    """By this module: threads of other tests may have something to say, too."""
    return "".join(record.getMessage() for record in caplog.records if record.name == "api.auth")


def test_listening_to_this_machine_alone_is_no_reason_to_warn(stack, caplog):
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        here.listen()
        warn_if_open_to_others(ApiKeySnapshot({}, is_open=True), stack)
    assert said(caplog) == ""
