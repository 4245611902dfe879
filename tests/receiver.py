"""A real HTTP server that webhooks are sent to."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """Records every body it is sent and answers with the given statuses in turn, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.received: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append(json.loads(body))
                status = statuses[min(len(receiver.received), len(statuses)) - 1]
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", receiver.url + "/elsewhere")
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def wait(self, job_id: str, timeout_seconds: float = 30) -> dict[str, Any]:
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
