"""A real MLflow server of a test's own, which can be stopped and come back, and a proxy that loses answers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from tests.conftest import free_port, wait_until


class MlflowServer:
    """One process, as the local stack runs it, over SQLite in a folder.

    `artifact_root` is where its clients put artifacts: through the server itself, or a store's URL.
    """

    def __init__(self, folder: Path, artifact_root: str = "mlflow-artifacts:/") -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        database = f"sqlite:///{folder}/mlflow.db"
        self._environment = os.environ | {
            "_MLFLOW_SERVER_FILE_STORE": database,
            "_MLFLOW_SERVER_REGISTRY_STORE": database,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": artifact_root,
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait` says when it serves."""
        command = [sys.executable, "-P", "-m", "uvicorn", "mlflow.server.fastapi_app:app", "--port", str(self.port)]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, cwd=self._folder)

    def wait(self) -> None:
        """Until it serves its database, whose tables it makes when first asked."""

        def serves() -> bool:
            try:
                address = f"{self.uri}/api/2.0/mlflow/experiments/search"
                return httpx.post(address, json={"max_results": 1}, timeout=60).is_success
            except httpx.TransportError:
                return False

        wait_until(serves, 120)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it takes connections and never answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


Forward = Callable[[], httpx.Response]


class Proxy:
    """Passes requests on to a server. What `meddle` returns for a path is answered; None cuts the connection.

    With `authorization` only requests with this header are passed on.
    """

    def __init__(
        self,
        uri: str,
        meddle: Callable[[str, Forward], httpx.Response | None] = lambda path, forward: forward(),
        authorization: str | None = None,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                method, path = self.command, self.path

                def forward() -> httpx.Response:
                    return httpx.request(method, uri + path, content=body, headers=headers, timeout=60)

                is_known = authorization in (None, self.headers.get("Authorization"))
                answer = meddle(path, forward) if is_known else httpx.Response(401, text="who are you?")
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *args: Any) -> None:
                """Nothing to stderr."""

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
