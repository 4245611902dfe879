"""A job waits for a Prefect server that is away, and for no longer than it must."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.waiting import wait_for_prefect
from tests.conftest import free_port


class Handler(BaseHTTPRequestHandler):
    """Answers 503 while it comes up, then 401 as a server that asks who is there."""

    left = 2

    def do_GET(self):
        Handler.left -= 1
        self.send_response(503 if Handler.left >= 0 else 401)
        self.end_headers()

    def log_message(self, *_args):
        pass


def test_a_server_that_comes_up_is_waited_for(monkeypatch, capsys):
    port = free_port()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    waiting = threading.Thread(target=wait_for_prefect, args=(60,))
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    with HTTPServer(("127.0.0.1", port), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        waiting.join(60)
        server.shutdown()
        serving.join()
    assert not waiting.is_alive()
    assert Handler.left == -1
    assert "does not respond" in capsys.readouterr().err


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/api"], ids=["no address", "nobody there"])
def test_what_stays_away_is_left_to_prefect(monkeypatch, url):
    if url:
        monkeypatch.setenv("PREFECT_API_URL", url)
    began = time.monotonic()
    wait_for_prefect(0.2)
    assert time.monotonic() - began < 30
