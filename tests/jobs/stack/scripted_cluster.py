"""As much of Kubernetes' API as a worker asks when it starts a job: it notes the jobs that are created."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml


class ScriptedCluster:
    """Serves until closed; `created` has the manifests, as they came."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        created = self.created

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                created.append(manifest)
                self._answer(201, manifest | {"metadata": manifest["metadata"] | {"name": "job-1", "uid": "1"}})

            def do_GET(self) -> None:
                self._answer(404, {"kind": "Status", "apiVersion": "v1", "code": 404, "status": "Failure"})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, daemon=True).start()

    def write_kubeconfig(self, path: Path) -> Path:
        """The file by which a client finds this cluster."""
        cluster = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": {}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
