"""A part that takes its time to start, in whatever way, is not up yet."""

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jobs.stack.startup import is_mlflow_ready

HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK"


@contextmanager
def starting_server(how: str) -> Iterator[str]:
    """A server that says it is healthy and then, asked for its database, behaves as one that is starting."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if b"/health" in self.rfile.readline():
                self.wfile.write(HEALTHY)
            elif how == "silent":
                time.sleep(0.5)
            elif how == "half an answer":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            elif how == "nonsense":
                self.wfile.write(b"starting\r\n\r\n")
            elif how == "an error":
                self.wfile.write(b"HTTP/1.1 503 Starting\r\nContent-Length: 0\r\n\r\n")
            elif how == "ready":
                self.wfile.write(HEALTHY)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("how", ["silent", "hangs up", "half an answer", "nonsense", "an error"])
def test_a_server_that_starts_is_not_ready_and_raises_nothing(how: str) -> None:
    with starting_server(how) as url:
        assert not is_mlflow_ready(url, timeout_seconds=0.2)
    assert not is_mlflow_ready(url, timeout_seconds=0.2)  # nor is one that does not listen


def test_a_server_that_answers_is() -> None:
    with starting_server("ready") as url:
        assert is_mlflow_ready(url)
