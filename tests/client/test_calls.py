"""What the clients send, and what becomes of the answers."""

import inspect
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from jobs.project import PROJECT_ROOT
from sft.config import SFTConfig
from tests.client.scripted_service import Scripted
from tuneyard_client import AsyncTuneyard, Tuneyard
from tuneyard_client.async_client import AsyncConfigs, AsyncDatasets
from tuneyard_client.client import Configs, Datasets
from tuneyard_client.errors import (
    ClientError,
    Conflict,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    RateLimited,
    ServiceError,
    ServiceUnreachable,
    UnexpectedResponse,
    WaitTimeout,
)

STARTED = Scripted(body=json.dumps({"job_id": "1", "status": "started", "message": "Training job started"}))


def job(status, **fields):
    return Scripted(body=json.dumps({"job_id": "1", "status": status, "config": {}} | fields))


def error(status, **headers):
    body = {"detail": "no such thing", "code": "a_code", "request_id": "r1"}
    return Scripted(status, json.dumps(body), headers)


@pytest.mark.parametrize(
    ("one", "other"), [(Tuneyard, AsyncTuneyard), (Configs, AsyncConfigs), (Datasets, AsyncDatasets)]
)
def test_both_clients_offer_the_same(one, other):
    def interface(client):
        methods = inspect.getmembers(client, inspect.isfunction)
        return {
            name: inspect.signature(method).parameters.keys() for name, method in methods if not name.startswith("_")
        }

    offered = interface(other)
    offered["close"] = offered.pop("aclose", None)
    assert interface(one) == {name: value for name, value in offered.items() if value is not None}


def test_a_submission_carries_its_fields_the_api_key_and_a_new_idempotency_key(service, call):
    server = service(STARTED)
    answer = call(server.url, "train", model_name="m", learning_rate="1e-4", strategy="reject")
    call(server.url, "submit", {"model_name": "m"})

    first, second = server.received
    assert (answer.job_id, answer.status, answer.message) == ("1", "started", "Training job started")
    assert (first.method, first.path) == ("POST", "/train?strategy=reject&strict=true")
    assert json.loads(first.body) == {"model_name": "m", "learning_rate": "1e-4"}
    assert first.headers["authorization"] == "Bearer secret"
    assert second.path == "/train?strict=true"
    assert len(first.headers["idempotency-key"]) == 36
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


def test_what_is_known_to_fail_a_job_is_an_error_or_with_strict_off_a_warning(service, call):
    warning = {"code": "model_not_found", "message": "model_name 'm' is nowhere"}
    server = service(Scripted(body=json.dumps({"job_id": "1", "status": "pending", "warnings": [warning]})))
    for made in (
        call(server.url, "train", model_name="m", strict=False),
        call(server.url, "submit", {"model_name": "m"}, "queue", None, False),
        call(server.url, "sft", {"base_model": "m"}, strict=False),
    ):
        assert [one.model_dump() for one in made.warnings] == [warning]
    assert [request.path for request in server.received] == ["/train", "/train", "/api/sft/train"]
    assert call(service(STARTED).url, "train").warnings == []
    with pytest.raises(NotFound):
        call(service(error(404)).url, "sft", {"base_model": "m"})


def test_a_submission_is_repeated_with_the_same_key(service, call):
    server = service(Scripted(body="lost", cut_after=0), error(503, **{"Retry-After": "0"}), STARTED)
    assert call(server.url, "train", model_name="m").job_id == "1"

    assert len(server.received) == 3
    assert len({request.headers["idempotency-key"] for request in server.received}) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_service_that_names_a_time_is_asked_again_then(service, call, status):
    server = service(error(status, **{"Retry-After": "1"}), job("running"))
    before = datetime.now(UTC)

    assert call(server.url, "job", "1").status == "running"
    assert 1 <= (datetime.now(UTC) - before).total_seconds() < 30


def test_what_would_not_be_the_same_a_second_time_is_sent_once(service, call):
    for method, args in (("cancel", ["1"]), ("configs.save", ["n", {}]), ("configs.delete", ["1"])):
        server = service(error(503, **{"Retry-After": "0"}))
        with pytest.raises(ServiceError):
            call(server.url, method, *args)
        assert len(server.received) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, NotAuthenticated),
        (403, NotAllowed),
        (404, NotFound),
        (409, Conflict),
        (413, InvalidRequest),
        (422, InvalidRequest),
        (429, RateLimited),
        (500, ServiceError),
        (503, ServiceError),
    ],
)
def test_an_error_says_all_that_the_service_said(service, call, status, kind):
    with pytest.raises(kind, match=r"^no such thing$") as caught:
        call(service(error(status)).url, "job", "1")
    found = caught.value
    assert (found.status, found.code, found.detail, found.request_id) == (status, "a_code", "no such thing", "r1")


@pytest.mark.parametrize(
    "answer",
    [
        Scripted(body="<html>"),
        Scripted(body="{}"),
        Scripted(502, "<html>"),
        Scripted(302),
        Scripted(400, '{"detail": null}'),
        Scripted(500, '{"detail": ""}'),
    ],
)
def test_something_else_at_that_address_is_told_from_a_service(service, call, answer):
    with pytest.raises(UnexpectedResponse, match="is this a Tuneyard service"):
        call(service(answer).url, "job", "1")


def test_nobody_there(call):
    with pytest.raises(
        ServiceUnreachable, match=r"no response from http://127\.0\.0\.1:9 .*is the service running\?"
    ) as e:
        call("http://127.0.0.1:9", "cancel", "1")
    assert (e.value.status, e.value.code) == (0, "unreachable")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "must begin with http"),
        ("ws://127.0.0.1", "must begin with http"),
        ("http://", "names no valid host"),
        ("http://a b", "names no valid host"),
        ("http://a..b", "invalid host"),
        (f"http://{'a' * 64}.b", "invalid host"),
        ("http://xn--.b", "invalid host"),
        ("\udcff", "invalid host"),
        ("http://127.0.0.1:0", "a port is between 1 and 65535"),
        ("http://127.0.0.1:99999", "a port is between 1 and 65535"),
        ("http://127.0.0.1/?a=1", r"leave out the \? or #"),
        ("http://127.0.0.1/#a", r"leave out the \? or #"),
        ("http://me:secret@127.0.0.1:a", r"http://\*\*\*@127.0.0.1:a"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused_before_a_request(call, url, told):
    with pytest.raises(ClientError, match=told) as caught:
        call(url, "job", "1")
    assert caught.value.code == "invalid_url"
    assert "secret" not in str(caught.value)


def test_a_password_in_the_url_is_not_shown_and_does_not_take_the_keys_place(call):
    with Tuneyard("http://me:secret@127.0.0.1:9", api_key="") as client, pytest.raises(ServiceUnreachable) as caught:
        client.cancel("1")
    assert "http://***@127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(ClientError, match="holds a user name, but an API key is set"):
        call("http://me:secret@127.0.0.1:9", "cancel", "1")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "foo://me:secret@a"), ("NO_PROXY", "[::1"), ("SSL_CERT_FILE", "/nowhere")],
)
def test_surroundings_in_which_no_connection_can_be_made_are_named(call, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ClientError, match=rf"no connection can be made: .*{variable}") as caught:
        call("http://service.invalid", "job", "1")
    assert caught.value.code == "invalid_proxy"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("job_id", ["", ".", "..", "\ud800", "1/rows"])
def test_what_is_no_part_of_a_path_is_no_id(call, job_id):
    with pytest.raises(InvalidRequest, match="is not an id"):
        call("http://127.0.0.1:9", "job", job_id)


@pytest.mark.parametrize("value", ["\ud800", float("nan"), {1}, 1 << 20_000], ids=["half", "nan", "set", "long"])
def test_what_json_can_not_hold_is_refused_before_a_request(call, value):
    with pytest.raises(InvalidRequest, match="can't be sent"):
        call("http://127.0.0.1:9", "submit", {"run_name": value})


@pytest.mark.parametrize("key", ["a\nb", "é", " a"])
def test_an_idempotency_key_that_no_header_can_hold_is_named(call, key):
    with pytest.raises(InvalidRequest, match="Idempotency-Key must be printable ASCII text"):
        call("http://127.0.0.1:9", "submit", {}, idempotency_key=key)


def test_ids_cannot_leave_their_place_in_the_path(service, call):
    server = service(error(404))
    with pytest.raises(NotFound):
        call(server.url, "job", "..\\queue?x=1#a")
    assert server.received[0].path == "/train/..%5Cqueue%3Fx%3D1%23a"


def test_jobs_come_page_by_page_until_there_are_enough(service, call):
    page = Scripted(body=json.dumps([json.loads(job("queued").body)] * 2), headers={"X-Next-Cursor": "c1"})
    last = Scripted(body=json.dumps([json.loads(job("queued").body)]))
    server = service(page, last)
    filters = {
        "status": "queued",
        "metadata": {"a": "b", "c": "d:e"},
        "created_after": datetime(2026, 1, 2, tzinfo=UTC),
    }

    assert len(call(server.url, "jobs", **filters)) == 3
    assert server.received[0].path == (
        "/train?status=queued&metadata=a%3Ab&metadata=c%3Ad%3Ae&created_after=2026-01-02T00%3A00%3A00%2B00%3A00&limit=200"
    )
    assert server.received[1].path.endswith("&limit=200&cursor=c1")
    assert len(call(service(page).url, "jobs", limit=2)) == 2


def test_waiting_tells_of_every_change_and_returns_the_end(service, call):
    server = service(job("queued"), job("queued"), job("running"), job("failed", error="why"))
    seen = []

    ended = call(server.url, "wait", "1", on_progress=lambda job: seen.append(job.status), poll_seconds=0.01)

    assert (ended.status, ended.error) == ("failed", "why")
    assert seen == ["queued", "running", "failed"]


def test_waiting_ends_in_time(service, call):
    with pytest.raises(WaitTimeout, match=r"job 1 is still running after 0\.1 s; it keeps running"):
        call(service(job("running")).url, "wait", "1", timeout_seconds=0.1, poll_seconds=0.01)


def test_a_saved_configuration_is_started_with_what_overrides_it(service, call):
    server = service(STARTED)
    config = SFTConfig(base_model="m", dataset_name="d", dataset_format="chat", lora_r=4)
    call(server.url, "sft", config, adapter_name="a", metadata={"x": "y"})
    call(server.url, "sft", {"lora_r": 2}, config_id="7")

    assert json.loads(server.received[0].body) == {
        "config": config.to_dict(), "adapter_name": "a", "metadata": {"x": "y"}
    }  # fmt: skip
    assert json.loads(server.received[1].body) == {"config": {"lora_r": 2}, "config_id": "7"}


def test_the_sync_client_is_written_from_the_async_one(tmp_path):
    subprocess.run([sys.executable, PROJECT_ROOT / "client" / "generate_sync.py", tmp_path], check=True)
    for made in tmp_path.iterdir():
        written = PROJECT_ROOT / "tuneyard_client" / made.name
        assert made.read_text() == written.read_text(), "run python client/generate_sync.py"
    assert [*tmp_path.iterdir()]


def test_url_and_key_come_from_the_environment(service, monkeypatch):
    server = service(STARTED, STARTED)
    monkeypatch.setenv("TUNEYARD_URL", server.url)
    monkeypatch.setenv("TUNEYARD_API_KEY", "from-the-environment")
    for given in ({}, {"api_key": "given"}):
        with Tuneyard(**given) as client:
            client.train(model_name="m", dataset_version="v1")
    keys = [request.headers["authorization"] for request in server.received]
    assert keys == ["Bearer from-the-environment", "Bearer given"]


def test_null_of_an_older_service_is_what_is_the_default_now(service, call):
    rows = {"train": {"rows": 2, "used": 2, "tokens": 9, "supervised_tokens": 4}}
    result = {"metrics": None, "warnings": None, "rows": rows}
    older = json.loads(job("completed", start_time=None, result=result).body)
    (found,) = call(service(Scripted(body=json.dumps([older]))).url, "jobs")
    assert (found.start_time, found.result.metrics, found.result.warnings, found.result.rows.eval) == (
        0.0,
        {},
        [],
        None,
    )
