"""Slow, silent and too many connections, at real uvicorn servers; at last at the documented command."""

import asyncio
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from types import SimpleNamespace

import httpx
import pytest
import uvicorn

from jobs.network.connection_guard import OUT_OF_DESCRIPTORS, ConnectionGuard
from jobs.network.connection_limits import ConnectionLimits, limits_for
from jobs.settings import PROJECT_ROOT
from sft.errors import InvalidConfig
from tests.attack.connections import BEGINNINGS, HALF_BODY, HALF_HEADERS, hold_half_open, keep_coming
from tests.conftest import free_port, wait_until
from tests.live_service import wait_until_up

LIMITS = ConnectionLimits(32, accepted_at_once=4, body_seconds=1, header_seconds=1, unread_seconds=2)
LONG_ANSWER = bytes(32 * 2**20)  # more than the system's buffers take


class Scripted:
    """An app that reads bodies, works for three seconds at /work, says much at /long, and reports what it is told.

    At /hold it works until it is let go.
    """

    def __init__(self):
        self.holding, self.let_go = 0, threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                asyncio.get_running_loop().call_exception_handler({"message": f"{OUT_OF_DESCRIPTORS}"})
                asyncio.get_running_loop().call_exception_handler({"message": f"{OUT_OF_DESCRIPTORS}"})
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/work":
            await asyncio.sleep(3)
        if scope["path"] == "/hold":
            self.holding += 1
            while not self.let_go.is_set():
                await asyncio.sleep(0.05)
        body = LONG_ANSWER if scope["path"] == "/long" else b"ok"
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body, "more_body": scope["path"] == "/late"})
        if scope["path"] == "/late":  # as where an answer is made piece by piece
            await asyncio.sleep(0.3)
            await send({"type": "http.response.body", "body": b""})


@contextmanager
def served(app):
    """The app at a uvicorn of its own; its URL."""
    port = free_port()
    config = uvicorn.Config(app, port=port, log_level="warning", timeout_keep_alive=1, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 60)
        time.sleep(0.3)  # until its queue is as long as it will be
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def guarded():
    app = Scripted()
    with served(ConnectionGuard(app, LIMITS)) as url:
        yield SimpleNamespace(url=url, app=app)


@asynccontextmanager
async def connected(url):
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)  # it is closed by the loop


async def seconds_until_closed(url, beginning, trickle=b""):
    """How long a connection stays open that begins so and adds a byte now and then."""
    began = time.monotonic()
    async with connected(url) as (reader, writer):
        writer.write(beginning)
        while True:
            try:
                await asyncio.wait_for(reader.read(), 0.2)
                break
            except TimeoutError:
                writer.write(trickle)
            except ConnectionError:
                break
    return time.monotonic() - began


def test_a_client_that_keeps_the_server_waiting_is_cut_off_and_one_that_waits_itself_is_not(guarded):
    slow = [(beginning, b"") for beginning in BEGINNINGS.values()] + [(HALF_HEADERS, b"x"), (HALF_BODY, b" ")]
    work = b"GET /work HTTP/1.1\r\nConnection: close\r\n\r\n".replace(b"\r\n", b"\r\nHost: localhost\r\n", 1)

    async def connect_all():
        return await asyncio.gather(
            *(seconds_until_closed(guarded.url, *each) for each in [*slow, (work, b"")]), read_slowly(guarded.url)
        )

    *cut, worked, received = asyncio.run(asyncio.wait_for(connect_all(), 90))
    assert max(cut) < 30  # they would stay for ever
    assert worked >= 3
    assert received >= len(LONG_ANSWER)


def test_a_packet_full_of_requests_makes_no_work_for_all_of_them(guarded):
    """Nobody needs the answers before it has the first one, and others wait for hundreds of answers meanwhile."""

    async def send(*pieces):
        received = b""
        async with connected(guarded.url) as (reader, writer):
            with suppress(ConnectionError, TimeoutError):
                for number, piece in enumerate(pieces):
                    writer.write(piece)
                    while received.count(b"\r\n\r\nok") <= number and (
                        chunk := await asyncio.wait_for(reader.read(2**16), 5)
                    ):
                        received += chunk
                while chunk := await asyncio.wait_for(reader.read(2**16), 0.3):
                    received += chunk
                return received.count(b"\r\n\r\nok"), "closed"
        return received.count(b"\r\n\r\nok"), "open"

    def comes_to(expected, *pieces):
        """On a busy machine what follows a second later may come too soon or too late for a client."""
        return any(asyncio.run(send(*pieces)) == expected for _ in range(5))

    one = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert comes_to((3, "open"), one, one, one)
    assert comes_to((2, "open"), one.replace(b"/ ", b"/late ", 1), one)  # has the answer before it has ended
    assert comes_to((1, "closed"), one * 200)
    with_body = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    assert comes_to((2, "open"), with_body, with_body)
    assert comes_to((1, "closed"), with_body * 200)


async def read_slowly(url):
    """A client that takes its time but goes on reading; the bytes it got."""
    count = 0
    async with connected(url) as (reader, writer):
        writer.write(b"GET /long HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while chunk := await reader.read(2**21):
            count += len(chunk)
            await asyncio.sleep(0.005)
    return count


def test_who_does_not_read_an_answer_is_cut_off(guarded):
    async def ask_and_wait():
        count = 0
        async with connected(guarded.url) as (reader, writer):
            writer.write(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.sleep(5)
            with suppress(ConnectionError):
                while chunk := await reader.read(2**21):
                    count += len(chunk)
        return count

    assert asyncio.run(ask_and_wait()) < len(LONG_ANSWER)


@pytest.mark.parametrize("kind", sorted(BEGINNINGS))
def test_more_connections_than_there_may_be_make_room_for_who_asks(guarded, kind):
    held = hold_half_open(guarded.url, connections=90, seconds=0.6, kind=kind)

    assert (held.opened, held.failed) == (90, 0)
    assert kind == "silent" or held.closed >= 90 - LIMITS.connections  # the system holds back the silent ones
    assert held.max_latency_ms < 5000  # after which one would have failed


def test_connections_that_keep_coming_do_not_take_the_room_of_who_asks(guarded):
    held = keep_coming(guarded.url, at_once=80, seconds=1)

    assert held.opened > LIMITS.connections
    assert held.failed == 0


def test_with_all_connections_at_work_the_next_one_is_told_so(guarded):
    address = ("127.0.0.1", int(guarded.url.rsplit(":", 1)[-1]))
    guarded.app.let_go.clear()
    before = guarded.app.holding
    with ExitStack() as opened:
        for _ in range(LIMITS.connections):
            connection = opened.enter_context(socket.create_connection(address))
            connection.sendall(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            wait_until(lambda: guarded.app.holding - before == LIMITS.connections, 30)
            refused = httpx.get(f"{guarded.url}/health", timeout=30)
        finally:
            guarded.app.let_go.set()

    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert refused.json()["code"] == "too_many_connections"
    assert "32 connections" in refused.json()["detail"]
    wait_until(lambda: httpx.get(f"{guarded.url}/health", timeout=30).status_code == 200, 30)


def test_a_lack_of_descriptors_is_one_line_and_not_thousands(caplog):
    with caplog.at_level(logging.WARNING), served(ConnectionGuard(Scripted(), LIMITS)):
        pass

    assert [record.message for record in caplog.records if record.name == "jobs.network.connection_guard"] == [
        "No connection can be accepted: the process has no file descriptor left (ulimit -n)"
    ]


def test_limits_follow_the_limit_of_open_files():
    assert limits_for(256, None, 60).connections == 128
    assert limits_for(1_000_000, None, 60).connections == 4096
    assert limits_for(1024, 500, 60).connections == 500
    with pytest.raises(InvalidConfig, match="max_connections must be at most 128 with 256 open files"):
        limits_for(256, 129, 60)


def test_300_half_open_connections_at_the_documented_command_with_256_descriptors(tmp_path):
    port = free_port()
    nowhere = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "PYTHONPATH": str(PROJECT_ROOT),
        "TUNEYARD_HOME": str(tmp_path / "state"),
        "TUNEYARD_DATABASE_URL": f"postgresql+psycopg2://{nowhere}/tuneyard",
        "PREFECT_API_URL": f"http://{nowhere}/api",
        "MLFLOW_TRACKING_URI": f"http://{nowhere}",
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "train_server:app", "--port", str(port)],
            cwd=PROJECT_ROOT / "training_cluster" / "api",
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        )
        try:
            wait_until_up(f"http://127.0.0.1:{port}")
            held = hold_half_open(f"http://127.0.0.1:{port}", connections=300, seconds=2)
        finally:
            process.terminate()
            process.wait()

    assert (held.opened, held.failed) == (300, 0)
    assert held.max_latency_ms < 5000
    assert (tmp_path / "log").stat().st_size < 64 * 1024
