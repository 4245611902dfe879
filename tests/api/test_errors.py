"""Bad input: one shape of answer, never a 500, one log record a request."""

import base64
import json
import logging

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from tests.conftest import wait_until

pytestmark = pytest.mark.stack

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def api(stack):
    return TestClient(create_app(stack))


def deep(depth):
    return b'{"config":' + b"[" * depth + b"]" * depth + b"}"


BODIES = {
    "malformed": b'{"model_name": ',
    "empty": b"",
    "a number": b"1",
    "null": b"null",
    "invalid UTF-8": b'{"model_name": "\xff\xfe"}',
    "not a number": b'{"learning_rate": NaN}',
    "infinite": b'{"learning_rate": -Infinity}',
    "overflowing float": b'{"learning_rate": 1e999}',
    "huge integer": b'{"batch_size": ' + b"9" * 400 + b"}",
    "an integer too long to parse": b'{"batch_size": ' + b"9" * 5000 + b"}",
    "NUL": rb'{"model_name": "a\u0000b"}',
    "NUL in a key": rb'{"a\u0000b": 1}',
    "half a surrogate pair": rb'{"model_name": "\ud800"}',
    "half a surrogate pair in a key": rb'{"\udfff": 1}',
    "a saved NaN": b'{"name": "x", "config": {"learning_rate": NaN}}',
    "a saved NUL": rb'{"name": "x", "config": {"a": ["\u0000"]}}',
    "a saved surrogate": rb'{"name": "x", "config": {"\ud800": 1}}',
    "a saved huge integer": b'{"name": "x", "config": {"a": ' + b"9" * 400 + b"}}",
    "deep": deep(500_000),
    "deep enough to parse": deep(900),
    "a list": b"[]",
    "many unknown fields": json.dumps({f"field{n}": n for n in range(5000)}).encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(("path", "status"), [("/train", 422), ("/api/sft/train", 400), ("/api/sft/configs", 400)])
def test_a_bad_body_is_answered_in_the_one_shape(api, path, status, body):
    answer = api.post(path, content=body, headers=JSON)

    assert answer.status_code == status, answer.text
    told = answer.json()
    assert set(told) == {"detail", "code", "request_id"}
    assert told["code"] in ("invalid_request", "invalid_config")
    assert told["request_id"] == answer.headers["X-Request-ID"]
    assert 0 < len(told["detail"]) <= 4000


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("/train", b'{"a', "the body is not valid JSON: Unterminated string starting at character 1"),
        ("/train", rb'{"model_name": "a\u0000"}', "model_name: must not hold a NUL character, got 'a\\x00'"),
        ("/train", b'{"seed": NaN}', "seed: must be a finite number, got nan"),
        ("/api/sft/configs", b"{}", "name is required\nconfig is required"),
        ("/api/sft/train", b'{"config": {"lora_r": 0}}', None),
    ],
)
def test_a_message_names_field_value_and_remedy(api, path, body, detail):
    told = api.post(path, content=body, headers=JSON).json()["detail"]
    assert told == detail or (detail is None and "lora_r: must be greater than 0, got 0" in told)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
@pytest.mark.parametrize(("path", "status"), [("/train", 422), ("/api/sft/train", 400)])
def test_another_content_type_is_named(api, path, status, content_type):
    answer = api.post(path, content=b"{}", headers={"content-type": content_type})

    assert answer.status_code == status
    assert answer.json()["detail"] == f"the body must be sent with Content-Type: application/json, got {content_type!r}"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/sft/%00%ff%0a", 404, "not_found"),
        ("PUT", "/train", 405, "method_not_allowed"),
        ("BREW", "/train", 405, "method_not_allowed"),
        ("GET", "/train/nobody", 404, "job_not_found"),
        ("GET", "/train/%ed%a0%80%0d%0a", 404, "job_not_found"),
        ("GET", "/train/%00", 422, "invalid_request"),
        ("GET", "/api/sft/jobs/%00", 400, "invalid_request"),
        ("GET", "/api/sft/jobs/" + "9" * 5000, 404, "job_not_found"),
        ("GET", "/train?%00=%00", 422, "invalid_request"),
    ],
)
def test_a_bad_path_is_answered_in_the_one_shape(api, method, path, status, code):
    answer = api.request(method, path)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"detail", "code", "request_id"}


def test_what_nobody_expected_gets_no_trace_out_but_into_the_log(stack, caplog):
    app = create_app(stack)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("secret inside")

    answer = TestClient(app).get("/broken", headers={"X-Request-ID": "mine-1"})

    assert answer.status_code == 500
    assert answer.json() == {
        "detail": "Internal server error; see the log for this request id",
        "code": "internal_error",
        "request_id": "mine-1",
    }
    (record,) = [record for record in caplog.records if record.name == "api.requests"]
    assert (record.levelname, record.exc_info[1].args) == ("ERROR", ("secret inside",))
    assert "request_id=mine-1" in record.getMessage()


@pytest.mark.parametrize("sane", ["a", "8f14e45f-ceea-4e7b.x_1", "x" * 128])
def test_a_sane_request_id_comes_back(api, sane):
    assert api.get("/health", headers={"X-Request-ID": sane}).headers["X-Request-ID"] == sane


@pytest.mark.parametrize("insane", ["", "x" * 129, "a b", "a\tb", "é", '"', "a;b", "a\n"])
def test_an_insane_request_id_is_replaced(api, insane):
    made = api.get("/health", headers={"X-Request-ID": insane.encode()}).headers["X-Request-ID"]
    assert made != insane
    assert len(made) == 32


@pytest.mark.parametrize("path", ["/a%0ab", "/%1b[31m", "/%e2%80%a8", "/x%0d%0aINFO forged"])
def test_a_request_is_one_line_in_the_log_whatever_its_path_holds(api, caplog, path):
    with caplog.at_level(logging.INFO, "api.requests"):
        answer = api.get(path)

    (line,) = [record.getMessage() for record in caplog.records if record.name == "api.requests"]
    assert line.isascii()
    assert line.isprintable()
    assert f"request_id={answer.headers['X-Request-ID']}" in line
    assert line.startswith('GET "/')
    assert " 404 " in line


@pytest.mark.parametrize(
    ("field", "number"),
    [("lora_r", 2**31), ("max_steps", 2**64), ("max_grad_norm", 1e30), ("neftune_noise_alpha", 1e10)],
)
def test_a_number_that_no_list_of_jobs_could_show_is_refused(api, field, number):
    whole = {"base_model": "a", "dataset_name": "b", "dataset_format": "auto", field: number}

    for path, body, status in (("/train", {field: number}, 422), ("/api/sft/train", {"config": whole}, 400)):
        answer = api.post(path, json=body)
        assert answer.status_code == status
        assert f"{field}: must be at most" in answer.json()["detail"]


def test_a_saved_configuration_comes_back_as_it_was_given_and_may_be_sent_again(api):
    config = {"seed": 10**30, "lora_target_modules": [2**70, {"x": -1e-300}, None, True, 0.1]}
    saved = api.post("/api/sft/configs", json={"name": "odd", "config": config}).json()

    assert saved["config"] == config
    shown = api.get(f"/api/sft/configs/{saved['config_id']}").json()
    assert shown["config"] == config
    again = api.put(f"/api/sft/configs/{saved['config_id']}", json={"name": "odd", "config": shown["config"]})
    assert (again.status_code, again.json()["version"]) == (200, 2)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"lora_rank": 8}, "lora_rank is not a known field; did you mean lora_r?"),
        ({"lora_r": 8, "zzz": 1}, "zzz is not a known field"),
        ({"model_name": "gpt2", "epochs": 1}, "did you mean base_model?\nepochs is not a known field"),
    ],
)
def test_a_saved_configuration_has_known_fields_only(api, config, told):
    body = {"name": "part", "config": config}
    path = f"/api/sft/configs/{api.post('/api/sft/configs', json={'name': 'part', 'config': {}}).json()['config_id']}"
    for answer in (api.post("/api/sft/configs", json=body), api.put(path, json=body), api.patch(path, json=body)):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_config")
        assert told in answer.json()["detail"]
    assert api.get(path).json()["version"] == 1


@pytest.mark.parametrize("prefix", ["/train", "/api/sft/jobs"])
def test_a_query_parameter_that_is_not_known_is_refused_with_the_nearest_name(api, prefix):
    status = 400 if prefix.startswith("/api/sft") else 422
    for query, told in {
        "state=queued": "state is not a query parameter of GET {}; did you mean status?",
        "modle=a": "modle is not a query parameter of GET {}; did you mean model?",
        "created_afer=1": "created_afer is not a query parameter of GET {}; did you mean created_after?",
        "zzz": "zzz is not a query parameter of GET {}; it takes status, limit, cursor, model, adapter",
        "limit=1&limit=2": "limit must be given once, got 2 values",
        "metadata.a=1&metadata.a=1": "metadata.a must be given once, got 2 values",
        "status=nonsense": "status: must be 'created'," if status == 422 else "status: must be 'pending',",
        "limit=x": "limit: must be a whole number, got 'x'",
    }.items():
        answer = api.get(f"{prefix}?{query}")
        assert (answer.status_code, answer.json()["code"]) == (status, "invalid_request"), query
        assert answer.json()["detail"].startswith(told.format(prefix)), answer.json()["detail"]
    assert api.get(f"{prefix}?metadata=a:1&metadata=b:2&metadata.c=3&limit=1").status_code == 200
    nobodys = api.get(f"{prefix}?metadata=a:1&metadata=a:2").json()  # no job has two values of one key
    assert nobodys in ([], {"jobs": []})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/queue"), ("POST", "/train"), ("POST", "/train/plan"), ("POST", "/api/sft/train"),
        ("GET", "/api/sft/configs"), ("POST", "/api/sft/configs"), ("GET", "/train/nobody"),
        ("DELETE", "/train/nobody"),
        ("GET", "/train/nobody/logs"), ("GET", "/api/sft/jobs/nobody/adapter"), ("POST", "/api/sft/jobs/nobody/stop"),
        ("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"),
    ],
)  # fmt: skip
def test_no_route_overlooks_a_parameter(api, method, path):
    answer = api.request(method, path, params={"nonsense": "1"}, json={} if method == "POST" else None)
    assert answer.status_code == (400 if path.startswith("/api/sft") else 422)
    assert f"nonsense is not a query parameter of {method} {path}" in answer.json()["detail"]


def test_a_field_of_the_body_in_the_query_is_told_where_it_goes(api):
    answer = api.post("/train?lora_dropout=0.1", json={})
    assert answer.json()["detail"] == "lora_dropout is not a query parameter of POST /train; it is a field of the body"


@pytest.mark.parametrize(
    ("saved", "change", "words"),
    [
        ({"base_model": "gpt2"}, {}, "dataset_name is required\ndataset_format is required"),
        ({"use_dora": True, "dataset_name": "b", "dataset_format": "chat"}, {"base_model": "a"}, None),
        (
            {"base_model": "a", "dataset_name": "b", "dataset_format": "chat", "lora_r": 2**40},
            {},
            "lora_r: must be at most 2147483647",
        ),
    ],
)
def test_a_job_from_a_saved_configuration_that_can_not_work_says_which(api, saved, change, words):
    config_id = api.post("/api/sft/configs", json={"name": "part", "config": saved}).json()["config_id"]
    change = change if words else {**change, "use_lora": False}
    answer = api.post("/api/sft/train", json={"config_id": config_id, "config": change})

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_saved_config")
    assert (words or "use_dora needs use_lora; set use_lora to true") in answer.json()["detail"]
    assert answer.json()["detail"].endswith(f"(in the saved configuration {config_id})")


def test_changes_to_a_saved_configuration_are_judged_by_themselves(api):
    config_id = api.post("/api/sft/configs", json={"name": "part", "config": {}}).json()["config_id"]
    answer = api.post("/api/sft/train", json={"config_id": config_id, "config": {"lora_rank": 8, "lora_r": "8"}})

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_config")
    assert answer.json()["detail"] == "lora_r: must be a number, got '8'"


@pytest.mark.parametrize(("path", "status"), [("/train", 422), ("/api/sft/jobs", 400)])
def test_a_cursor_of_nobody_is_refused(api, path, status):
    answer = api.get(path, params={"cursor": "x"})
    assert (answer.status_code, answer.json()["code"]) == (status, "invalid_cursor")


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "x", "", None, 5]
)
@pytest.mark.parametrize(("path", "status"), [("/train", 422), ("/api/sft/jobs", 400)])
def test_a_cursor_whose_time_the_database_cannot_hold_is_refused(api, path, status, time):
    cursor = base64.urlsafe_b64encode(json.dumps([time, []]).encode()).decode()
    answer = api.get(path, params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (status, "invalid_cursor")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_the_first_and_the_last_time_can_be_asked_for(api, time):
    cursor = base64.urlsafe_b64encode(json.dumps([time.replace("Z", "+00:00"), []]).encode()).decode()
    for query in ({"cursor": cursor}, {"created_after": time}, {"created_before": time}):
        assert api.get("/train", params=query | {"limit": 1}).status_code == 200


@pytest.mark.parametrize(
    "seconds",
    [
        *("253402300799.1", "-62135596801", "1e999", "-1e300", "9" * 400, "nan", "inf", "-inf", "1e"),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+00:01", "0000-01-01"),
        *("10000-01-01", "2026-01-01T00:00:00+25:00", "2026-02-30", "2026-01-01T00:00:00-99:99", "\u0662\u0660"),
    ],
)
def test_a_time_outside_the_calendar_is_refused(api, seconds):
    answer = api.get("/train", params={"created_after": seconds})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["detail"].startswith("created_after: must be a time, as ISO 8601 or epoch seconds, got")


@pytest.mark.parametrize(
    "path", ["/", "/health", "/queue", "/train?limit=1", "/api/sft/jobs", "/docs", "/openapi.json"]
)
def test_head_gets_the_headers_of_get(api, path):
    def compare():
        """What is told of jobs may change between the two."""
        head, answer = api.head(path), api.get(path)
        assert (head.status_code, head.content) == (200, b"")
        return all(head.headers[name] == answer.headers[name] for name in ("content-length", "content-type"))

    wait_until(compare, 30)
    assert "HEAD" in api.put(path).headers["allow"]


@pytest.mark.parametrize(
    ("path", "status"), [("/train/nobody", 404), ("/train?zzz=1", 422), ("/train/nobody/adapter", 404)]
)
def test_head_of_what_get_refuses(api, path, status):
    assert (api.head(path).status_code, api.head(path).content) == (status, b"")


@pytest.mark.parametrize("path", ["/train/nobody/events", "/api/sft/jobs/nobody/logs"])
def test_head_of_a_stream_is_refused(api, path):
    assert api.head(path).status_code == 405


@pytest.mark.parametrize(("path", "status"), [("/train", 422), ("/api/sft/train", 400), ("/api/sft/configs", 400)])
def test_a_key_that_is_given_twice_is_refused(api, path, status):
    body = b'{"name": "n", "config": {"lora_r": 8, "lora_r": 16}, "lora_name": "a", "lora_name": "b"}'
    answer = api.post(path, content=body, headers=JSON)
    told = answer.json()["detail"].splitlines()
    assert answer.status_code == status
    assert {f"{key} is given more than once; give it once" for key in ("lora_r", "lora_name")} <= set(told)


@pytest.mark.parametrize("path", ["/train/plan", "/train"])
def test_allow_names_what_the_path_itself_takes(api, path):
    allowed = {"/train": "GET, HEAD, POST", "/train/plan": "POST"}
    assert api.request("PUT", path).headers["Allow"] == allowed[path]
