"""Clients that send all of a body before they read get the response to a request that is refused early."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
import uvicorn
from starlette.responses import JSONResponse

from api import lingering
from api.lingering import Lingering, drop_body
from tests.conftest import free_port, wait_until
from tests.live_service import serving_api

MIB = 2**20
HEAD = "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n"


async def refuse(scope, receive, send):
    await JSONResponse({"detail": "too large"}, 413, {"Connection": "close"})(scope, receive, send)


async def refuse_and_keep(scope, receive, send):
    await JSONResponse({"detail": "not found"}, 404)(scope, receive, send)


@contextmanager
def serving(app) -> Iterator[int]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 90)
        yield port
    finally:
        server.should_exit = True
        thread.join()


def send_all_then_read(port: int, size: int, path: str = "/", header: str = "", sent: int | None = None) -> bytes:
    """The response, to a client that reads nothing before it has sent so many bytes of its body."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(HEAD.format(path, size, header).encode())
        client.sendall(b"x" * (size if sent is None else sent))
        answer = b""
        while piece := client.recv(2**16):
            answer += piece
    return answer


def test_the_response_arrives_though_the_body_was_not_read():
    with serving(Lingering(refuse)) as port:
        for size in (10 * MIB, 12 * MIB):
            answer = send_all_then_read(port, size)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.endswith(b'{"detail":"too large"}')


def test_a_client_that_ends_the_connection_gets_its_response_too():
    with serving(Lingering(refuse_and_keep)) as port:
        answer = send_all_then_read(port, 12 * MIB, header="Connection: close\r\n")
        assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_client_that_waits_to_be_asked_for_its_body_is_not_asked(monkeypatch):
    monkeypatch.setattr(lingering, "SILENT_SECONDS", 300)
    monkeypatch.setattr(lingering, "SECONDS", 300)
    with serving(Lingering(refuse)) as port:
        answer = send_all_then_read(port, MIB, header="Expect: 100-continue\r\n", sent=0)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"100 Continue" not in answer


@pytest.mark.parametrize("sent", [0, 100])
def test_a_client_that_falls_silent_is_not_waited_for_long(monkeypatch, sent):
    monkeypatch.setattr(lingering, "SILENT_SECONDS", 0.2)
    with serving(Lingering(refuse)) as port:
        assert send_all_then_read(port, MIB, sent=sent).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(("limit", "value", "most"), [("MOST_BYTES", 5 * MIB, 6), ("SECONDS", 0.3, 30)])
def test_what_is_read_has_a_limit(monkeypatch, limit, value, most):
    monkeypatch.setattr(lingering, limit, value)
    pieces = []

    async def receive():
        await anyio.sleep(0.02)
        pieces.append(MIB)
        return {"type": "http.request", "body": b"x" * MIB, "more_body": True}

    anyio.run(drop_body, receive)
    assert 1 < len(pieces) <= most


@pytest.mark.stack
def test_a_body_beyond_the_limit_gets_413_from_the_service(stack):
    with serving_api(stack.model_copy(update={"max_upload_bytes": 10**6})) as url:
        port = int(url.rpartition(":")[2])
        for path in ("/train", "/datasets", "/v1/files"):
            answer = send_all_then_read(port, 10 * MIB, path)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b"The body may have at most" in answer
