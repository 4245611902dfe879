"""Credentials in the address of Prefect are used, and shown nowhere."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jobs.engine.credentials import open_client
from jobs.engine.prefect_client import open_prefect_client
from jobs.project import PROJECT_ROOT
from jobs.settings import Settings
from jobs.stack.endpoints import Endpoints
from jobs.stack.parts import fill_addresses, stack_environment
from jobs.stack.readiness import check_parts
from jobs.url_credentials import split_credentials, take_prefects_credentials

USER, PASSWORD, ESCAPED = "ann", "p@ss:/ word", "p%40ss%3A%2F%20word"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture
def server() -> Iterator[str]:
    """A server that responds to who sends the credentials; its address, with them."""

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.headers.get("Authorization") == BASIC
            self.send_response(200 if is_known else 401)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, format: str, *_: object) -> None:
            """Quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://{USER}:{ESCAPED}@127.0.0.1:{running.server_port}/api"
    running.shutdown()
    running.server_close()


@pytest.fixture
def settings(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    monkeypatch.setenv("PREFECT_API_URL", server)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "former:one")
    return Settings(home=tmp_path)


def test_they_are_sent_by_every_client(settings: Settings) -> None:
    with open_client(settings) as client:
        assert client.get("/health").status_code == 200
    with open_prefect_client(settings) as prefect:
        assert prefect.request("GET", "/health").status_code == 200
    assert check_parts(settings)["prefect"].ok


def test_the_address_is_shown_without_them(settings: Settings, server: str) -> None:
    address = server.replace(f"{USER}:{ESCAPED}@", "")
    assert settings.prefect_api_url == address
    resolved = fill_addresses(settings)
    assert PASSWORD not in repr(resolved)
    assert ESCAPED not in repr(resolved)
    addresses = {"prefect_api_url": str(resolved.prefect_api_url)}
    Endpoints(True, addresses, (), ()).write(settings.home)
    assert ESCAPED not in (settings.home / "endpoints.json").read_text()


def test_the_parts_of_a_stack_have_them_beside_the_address(settings: Settings, server: str) -> None:
    environment = stack_environment(settings)
    assert environment["PREFECT_API_URL"] == settings.prefect_api_url
    assert environment["PREFECT_API_AUTH_STRING"] == f"{USER}:{PASSWORD}"
    assert ESCAPED not in json.dumps(environment)


def test_a_jobs_process_and_prefects_own_client_in_it_have_them_so_too(server: str) -> None:
    code = (
        "import os; from jobs.url_credentials import *; take_prefects_credentials(os.environ); "
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as client: "
        "print(client.request('GET', '/health').status_code, client.api_url)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PREFECT_API_URL": server},
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("200 http://127.0.0.1:")
    assert ESCAPED not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://prefect.example/api", {}),
        ("http://ann@prefect.example/api", {"PREFECT_API_AUTH_STRING": "ann:"}),
        ("http://[::1", {}),
        ("", {}),
    ],
)
def test_an_address_without_a_password_stays(url: str, expected: dict[str, str]) -> None:
    environment = {"PREFECT_API_URL": url}
    take_prefects_credentials(environment)
    assert environment == {"PREFECT_API_URL": split_credentials(url)[0]} | expected
