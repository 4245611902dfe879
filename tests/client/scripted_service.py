"""A service that answers as it is told, for what a real one can't be made to do: fail, stall, break off."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Scripted:
    """One answer, once `wait_for` is set. `cut_after`: break the connection after so many bytes of the body."""

    status: int = 200
    body: str | bytes = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    wait_for: threading.Event | None = None


@dataclass
class Received:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: str


class ScriptedService:
    """Gives the answers in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Scripted) -> None:
        self.received: list[Received] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                service.received.append(
                    Received(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                )
                answer = answers[min(len(service.received), len(answers)) - 1]
                if answer.wait_for is not None:
                    answer.wait_for.wait(60)
                content = answer.body.encode() if isinstance(answer.body, str) else answer.body
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content if answer.cut_after is None else content[: answer.cut_after])
                self.close_connection = answer.cut_after is not None

            do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815  # the base class's names

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


MakeService = Callable[..., ScriptedService]
