"""Receivers whose answers are meant to do harm: without end, unpacked a thousand times as large, leading elsewhere."""

import functools
import gzip
import itertools
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from typing import Any

import psutil

from jobs.webhooks.call import TIMEOUT_SECONDS, CallOutcome, send
from jobs.webhooks.targets import ForbiddenTarget, check_target
from tests.attack.case import Finding, Harm, Target, case

GROWTH_BYTES = 64 * 2**20  # of this process while it reads an answer
OK = b"HTTP/1.1 200 OK\r\n"
INSIDE = ("http://169.254.169.254/latest", "http://127.0.0.1:5432/", "file:///etc/passwd", "//[::1]/", "gopher://x/1")


def endless(head: bytes, chunk: bytes) -> Iterator[bytes]:
    """Never comes to an end."""
    return itertools.chain([head], itertools.repeat(chunk))


def draw_answers() -> dict[str, Iterable[bytes]]:
    """By what each is: what the receiver sends, piece by piece."""
    packed = _pack()
    zipped = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    redirects = {
        f"redirect {status} to {place}": [_redirect(status, place)] for status in (301, 307) for place in INSIDE
    }
    return redirects | {
        "gzip bomb": [zipped + packed],
        "gzip in gzip": [OK + b"Content-Encoding: gzip, gzip, gzip\r\n\r\n" + gzip.compress(packed)],
        "endless body": endless(OK + b"\r\n", bytes(2**16)),
        "endless chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        "a length of exabytes": endless(OK + b"Content-Length: 9223372036854775807\r\n\r\n", bytes(2**16)),
        "a length of 10^400": [OK + b"Content-Length: 1" + b"0" * 400 + b"\r\n\r\n"],
        "endless headers": endless(OK, b"X-More: " + b"y" * 100 + b"\r\n"),
        "one endless header": endless(OK + b"X-More: ", b"y" * 2**16),
        "an endless first line": endless(b"HTTP/1.1 200 ", b"y" * 2**16),
        "endless early hints": endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
        "endless continues": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "another protocol": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n" + bytes(1000)],
        "no HTTP": endless(b"", b"SSH-2.0-x\r\n"),
        "a status of 0": [b"HTTP/1.1 000 x\r\n\r\n"],
        "headers of control characters": [OK + b"Retry-After: \x00\x1b[2J\r\nX: \xff\xfe\r\n\r\n"],
        "a retry after all time": [b"HTTP/1.1 503 x\r\nRetry-After: " + b"9" * 4000 + b"\r\n\r\n"],
    }


@functools.cache
def _pack() -> bytes:
    return gzip.compress(bytes(200 * 2**20), 1)


def _redirect(status: int, place: str) -> bytes:
    return f"HTTP/1.1 {status} x\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()


@contextmanager
def receiver(answer: Iterable[bytes]) -> Iterator[str]:
    """URL of a receiver that takes one call and answers so."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                for piece in answer:
                    connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook"
    finally:
        server.close()
        thread.join(5)


def call(answer: Iterable[bytes]) -> tuple[CallOutcome | BaseException, float, int]:
    """What came of a call that is answered so, the seconds it took and the bytes this process grew by."""
    with receiver(answer) as url:
        before, began = psutil.Process().memory_info().rss, time.monotonic()
        outcome: CallOutcome | BaseException
        try:
            outcome = send(url, "msg_1", {"job_id": "x"}, [], [ip_network("127.0.0.0/8")])
        except Exception as error:
            outcome = error
        return outcome, time.monotonic() - began, psutil.Process().memory_info().rss - before


@case
def no_answer_of_a_receiver_keeps_its_sender(target: Target) -> Iterator[Finding]:
    """Each is recorded, within the time of one attempt and in little memory."""
    for name, answer in draw_answers().items():
        outcome, seconds, growth = call(answer)
        if isinstance(outcome, BaseException):
            yield Finding(Harm.UNSETTLED, f"{name}: {outcome!r}")
        elif outcome.is_delivered and name.startswith("redirect"):
            yield Finding(Harm.ESCAPED, f"{name}: {outcome}")
        if seconds > TIMEOUT_SECONDS + 3 or growth > GROWTH_BYTES:
            yield Finding(Harm.STARVED, f"{name}: {seconds:.1f} s, {growth} bytes")


@case
def a_name_that_changes_its_address_leads_nowhere_else(target: Target) -> Iterator[Finding]:
    """Public when it is checked, loopback when it is connected to."""
    answers = iter(["93.184.216.34", *["127.0.0.1"] * 9])
    asked = list[Any]()
    real, connect = socket.getaddrinfo, socket.create_connection

    def resolve(host: Any, port: Any, *more: Any, **named: Any) -> Any:
        if host != "rebinding.example":
            return real(host, port, *more, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def refuse(address: Any, *more: Any, **named: Any) -> Any:
        if threading.current_thread() is not mine:
            return connect(address, *more, **named)
        asked.append(address)
        raise ConnectionRefusedError

    mine = threading.current_thread()
    socket.getaddrinfo, socket.create_connection = resolve, refuse
    try:
        send("http://rebinding.example/hook", "msg_1", {}, [], [])
    finally:
        socket.getaddrinfo, socket.create_connection = real, connect
    if {address[0] for address in asked} != {"93.184.216.34"}:
        yield Finding(Harm.ESCAPED, f"connected to {asked}")


@case
def inside_addresses_are_refused_when_a_job_is_posted(target: Target) -> Iterator[Finding]:
    """In every spelling; loopback itself is allowed to the service of these attacks."""
    for host in ("169.254.169.254", "[::ffff:169.254.169.254]", "2852039166", "0xa9fea9fe", "10.0.0.1", "0.0.0.0"):  # noqa: S104
        url = f"http://{host}/x"
        with target.client() as client, suppress(ForbiddenTarget):
            answer = client.post("/train", json={"model_name": "tiny/llama", "webhook_url": url})
            if answer.status_code != 422:
                yield Finding(Harm.ESCAPED, f"{url}: {answer.status_code}")
            check_target(url, [])
            yield Finding(Harm.ESCAPED, f"{url} is taken for public")
