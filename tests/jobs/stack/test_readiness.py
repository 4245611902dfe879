"""A part that takes its time to start, in whatever way, is not up yet."""

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.shared_store import SharedStore
from jobs.stack import readiness
from jobs.stack.readiness import PartCheck, check_parts
from jobs.stack.startup import is_mlflow_ready
from tests.s3_server import ENVIRONMENT

NOBODY, DATABASE = "http://127.0.0.1:9", "postgresql://127.0.0.1:9/t"  # nothing listens on 9
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


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ("file://{folder}", PartCheck(True, "takes files")),
        ("gs://secret-bucket/x", PartCheck(False, "can't be used as it is; `tuneyard doctor` says why")),
    ],
)
def test_a_store_is_one_of_the_parts(tmp_path: Path, store: str, expected: PartCheck) -> None:
    settings = Settings(home=tmp_path, prefect_api_url=NOBODY, mlflow_tracking_uri=NOBODY, database_url=DATABASE)
    assert "store" not in check_parts(settings)
    assert check_parts(settings.model_copy(update={"store": store.format(folder=tmp_path)}))["store"] == expected


def test_a_store_that_is_away_or_hangs_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": NOBODY}).items():
        monkeypatch.setenv(name, value)
    away = readiness._check_store(SharedStore("s3://bucket/x"))
    assert away.ok
    assert away.is_warning
    release = threading.Event()
    monkeypatch.setattr(SharedStore, "check", lambda self: release.wait(30))
    monkeypatch.setattr(readiness, "TIMEOUT_SECONDS", 0.1)
    assert readiness._check_store(SharedStore("s3://silent/x")) == away
    release.set()
