"""Body, rate and origin limits, over the real app and over a real socket."""

import socket
import subprocess
import sys
import time

import pytest
from fastapi.testclient import TestClient

from api.limits import parse_rate_limit
from api.lingering import MOST_BYTES
from api.main import create_app
from sft.errors import InvalidConfig
from tests.conftest import free_port

pytestmark = pytest.mark.stack

LIMIT = 1000


@pytest.fixture
def api(stack):
    return TestClient(create_app(stack.model_copy(update={"max_body_bytes": LIMIT})))


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(api):
    json_body = {"content-type": "application/json"}
    assert api.post("/train", content=b"[" + b" " * (LIMIT - 2) + b"]", headers=json_body).status_code == 422

    answer = api.post("/train", content=b"[" + b" " * (LIMIT - 1) + b"]", headers=json_body)
    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"
    assert answer.json()["detail"] == "The body may have at most 1000 bytes (TUNEYARD_MAX_BODY_BYTES)"


@pytest.mark.parametrize("path", ["/train", "/api/sft/train", "/api/sft/configs"])
def test_a_body_without_announced_length_is_counted_as_it_comes(api, path):
    pieces = (b" " * 100 for _ in range(LIMIT // 100 + 1))
    answer = api.post(path, content=pieces, headers={"content-type": "application/json"})
    assert "content-length" not in answer.request.headers
    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"


@pytest.fixture
def port(stack):
    """The port of the app in a process of its own with a small body limit."""
    port = free_port()
    settings = stack.model_copy(update={"max_body_bytes": LIMIT}).model_dump_json()
    code = "import uvicorn; from api.main import create_app; from jobs.settings import Settings\n"
    code += f"uvicorn.run(create_app(Settings.model_validate_json({settings!r})), port={port})"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 120
            while True:
                assert time.monotonic() < deadline
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
            yield port
        finally:
            process.terminate()


@pytest.mark.parametrize("announced", [b"Transfer-Encoding: chunked", b"Content-Length: 100000000"])
def test_the_server_does_not_go_on_reading(port, announced):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(
            b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + announced + b"\r\n\r\n"
        )
        sent = 0
        try:
            while sent < 100_000_000:
                sent += client.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        except OSError:
            pass
    assert sent < MOST_BYTES + 20_000_000  # what it drops so that the response arrives, and the system's buffers


def test_a_client_that_asks_too_often_is_told_when_to_come_back(stack):
    api = TestClient(create_app(stack.model_copy(update={"rate_limit": "3/minute"})))

    assert [api.get("/queue").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = api.get("/train")
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json()["detail"] == f"At most 3 per 1 minute; try again in {refused.headers['Retry-After']} s"
    assert api.get("/health").status_code == 200


def test_there_is_no_rate_limit_by_default(stack):
    api = TestClient(create_app(stack))
    assert {api.get("/nowhere").status_code for _ in range(300)} == {404}


def test_a_rate_limit_that_is_none_is_refused_at_once(stack):
    with pytest.raises(InvalidConfig, match="rate_limit must be a rate such as 600/minute, got 'often'"):
        create_app(stack.model_copy(update={"rate_limit": "often"}))
    assert str(parse_rate_limit("600/minute")) == "600 per 1 minute"


def test_pages_of_other_origins_get_no_leave_by_default(stack):
    answer = TestClient(create_app(stack)).get("/health", headers={"Origin": "https://lab.example"})
    assert [name for name in answer.headers if name.startswith("access-control")] == []


def test_pages_of_an_origin_that_was_set_may_ask_and_read_errors(stack):
    api = TestClient(create_app(stack.model_copy(update={"cors_origins": ("https://lab.example",)})))
    origin = {"Origin": "https://lab.example"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

    asked = api.options("/train", headers=origin | preflight)
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://lab.example")
    assert api.get("/nowhere", headers=origin).headers["access-control-allow-origin"] == "https://lab.example"
    assert "access-control-allow-origin" not in api.get("/health", headers={"Origin": "https://evil.example"}).headers
