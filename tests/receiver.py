"""A real HTTP server that webhooks are sent to."""

import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """Records every body it is sent and answers with the given statuses in turn, the last one for ever.

    `requests` holds headers and body as they came, `taken` the bodies that were answered with 2xx.
    """

    def __init__(
        self, *statuses: int, host: str = "127.0.0.1", port: int = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        self.received: list[dict[str, Any]] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.taken: list[dict[str, Any]] = []
        receiver, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    receiver.requests.append((dict(self.headers), body))
                    receiver.received.append(json.loads(body))
                    status = statuses[min(len(receiver.received), len(statuses)) - 1]
                    if 200 <= status < 300:
                        receiver.taken.append(receiver.received[-1])
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", receiver.url + "/elsewhere")
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, port), Handler)
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def wait(self, job_id: str, timeout_seconds: float = 60) -> dict[str, Any]:
        """The first body about this job, as soon as it is there."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            for body in self.received:
                if body.get("job_id") == job_id:
                    return body
            time.sleep(0.1)
        raise AssertionError(f"no webhook for job {job_id} in {timeout_seconds} s; received {self.received}")

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
