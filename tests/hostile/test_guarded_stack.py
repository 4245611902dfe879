"""A stack of its own whose owner uses API keys: who gets at its servers, and where its secrets turn up."""

import os
import signal
import subprocess
import tempfile
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import psutil
import pytest
from mlflow import MlflowClient
from sqlalchemy import create_engine, text

from jobs.clients.keys import KeyScope, create_key
from jobs.engine.credentials import find_password, open_client, profile_path
from jobs.engine.prefect_client import open_prefect_client
from jobs.project import code_environment
from jobs.settings import Settings
from jobs.stack import postgres
from jobs.stack.database_urls import local_url, sibling_url
from jobs.stack.local import ensure_up
from jobs.stack.process_manager import run_folder, stack_processes
from jobs.storage.tables import engine_for
from tests.conftest import free_port, wait_until
from tests.e2e.api_process import ApiProcess
from tests.receiver import Receiver
from tests.stack_guard import stopping_stack
from tests.tiny_models import save_tiny_llama
from tuneyard_wire.one_line import escape

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

ROW = '{"instruction": "Say hello.", "input": "", "output": "Hello."}\n'
ODD = {  # what looks like templates of Prefect's, or like two log lines
    "run_name": "{{ flow_run.id }} {% raw %} \n2026-01-01 INFO jobs: forged \x1b[2J \u2028",
    "wandb_run_name": '{"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}',
    "wandb_project": "{{ 7 * 7 }}",
}
METADATA = {"a": "{{ 7 * 7 }}", "b": '{"__prefect_kind": "workspace_variable", "variable_name": "x"}', "c": "{# x #}"}


TABLES = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname !~ '^(pg_|information)'"


class Secrets(NamedTuple):
    """One of each, as nobody else has it."""

    webhook: str
    hub: str
    wandb: str
    registry: str
    database: str


class Guarded(NamedTuple):
    """The stack and one job that it ran."""

    settings: Settings
    secrets: Secrets
    key: str
    api: httpx.Client
    job: dict[str, Any]
    receiver: Receiver
    folder: Path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cluster and socket of a PostgreSQL server that is not the stack's, for an address with a password."""
    with tempfile.TemporaryDirectory(prefix="tuneyard-pg-") as folder:
        data = Path(folder, "data")
        postgres.prepare_cluster(data)
        server = subprocess.Popen(
            postgres.server_command(data),
            env=code_environment(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: postgres.is_ready(local_url(data, "postgres")), 60)
            postgres.ensure_databases(local_url(data, "postgres"), ["tuneyard"])
            yield data
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and path of a dataset registry behind HTTP, which takes every user."""
    folder = tmp_path_factory.mktemp("registry")
    (folder / "work/rows").mkdir(parents=True)
    (folder / "work/rows/train.jsonl").write_text(ROW * 12)
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    for command in (
        ["git", "init", "--quiet", "--initial-branch=main", "work"],
        ["git", "-C", "work", "add", "--all"],
        ["git", "-C", "work", *who, "commit", "--quiet", "--message", "rows"],
        ["git", "clone", "--quiet", "--bare", "work", "bare.git"],
        ["git", "-C", "bare.git", "update-server-info"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}/bare.git"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def guarded(database: Path, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A stack with a secret of each kind, and one tiny job that used them all."""
    folder = tmp_path_factory.mktemp("guarded")
    receiver = Receiver(200)
    secrets = Secrets(
        webhook=b64encode(token_hex(16).encode()).decode(),
        hub=f"hf_{token_hex(17)}",
        wandb=token_hex(20),
        registry=token_hex(12),
        database=token_hex(12),
    )
    url = local_url(database, "tuneyard").replace("://postgres@", f"://postgres:{secrets.database}@")
    assert secrets.database in url
    environment = {
        "TUNEYARD_HOME": str(folder / "home"),
        "TUNEYARD_PREFECT_PORT": str(free_port()),
        "TUNEYARD_MLFLOW_PORT": str(free_port()),
        "TUNEYARD_REQUIRE_API_KEY": "true",
        "TUNEYARD_DATABASE_URL": url,
        "TUNEYARD_DATASET_REGISTRY": f"http://me:{secrets.registry}@{registry}",
        "TUNEYARD_WEBHOOK_SECRETS": f"whsec_{secrets.webhook}",
        "HF_TOKEN": secrets.hub,
        "HF_HUB_OFFLINE": "1",
        "WANDB_API_KEY": secrets.wandb,
        "WANDB_MODE": "offline",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        asked = Settings()
        with ExitStack() as opened:
            opened.callback(receiver.close)
            opened.enter_context(stopping_stack(asked))
            settings = ensure_up(asked)
            save_tiny_llama(settings.model_root / "tiny")
            _, key = create_key(engine_for(str(settings.database_url)), "tests", KeyScope.SUBMIT)
            process = ApiProcess(dict(os.environ), folder / "api.log")
            opened.callback(process.close)
            process.start()
            process.client.headers["Authorization"] = f"Bearer {key}"
            job = run_job(process.client, receiver)
            yield Guarded(settings, secrets, key, process.client, job, receiver, folder)
    engine_for(url).dispose()
    assert stack_processes(asked.home) == []


def run_job(api: httpx.Client, receiver: Receiver) -> dict[str, Any]:
    """One tiny job, told of by webhook; what the API says of it at its end."""
    body = ODD | {
        "model_name": "tiny", "dataset_version": "rows@main", "template": "chatml", "lora_name": "guarded",
        "max_steps": 1, "num_epochs": 1, "tracking_backend": "wandb", "webhook_url": receiver.url, "metadata": METADATA,
    }  # fmt: skip
    posted = api.post("/train", json=body)
    assert posted.status_code == 200, posted.text
    job_id = posted.json()["job_id"]
    receiver.wait(job_id, 240)
    job: dict[str, Any] = api.get(f"/train/{job_id}").json()
    assert job["status"] == "completed", job["error"]
    return job


def all_secrets(guarded: Guarded) -> dict[str, str]:
    """By what it is: each secret as it was planted and as it may be written."""
    found = guarded.secrets._asdict() | {"key": guarded.key, "prefect": str(find_password(guarded.settings))}
    found["prefect alone"] = found["prefect"].split(":")[1]
    encoded = {f"{name} in base64": b64encode(value.encode()).decode().rstrip("=") for name, value in found.items()}
    quoted = {f"{name} quoted": quote(value, safe="") for name, value in found.items()}
    return found | encoded | quoted


def test_what_looks_like_a_template_arrives_as_text(guarded: Guarded) -> None:
    config = guarded.job["config"]
    assert {name: config[name] for name in ODD} == ODD
    assert guarded.job["metadata"] == METADATA
    with open_client(guarded.settings) as prefect:
        run = prefect.get(f"/flow_runs/{guarded.job['job_id']}").json()
    assert {name: run["parameters"]["config"][name] for name in ODD} == ODD
    assert run["parameters"]["metadata"] == METADATA
    assert run["name"] == escape(ODD["run_name"])  # on one line, for the logs of workers
    version = MlflowClient(str(guarded.settings.mlflow_tracking_uri)).get_model_version("guarded", "1")
    params = MlflowClient(str(guarded.settings.mlflow_tracking_uri)).get_run(version.run_id).data.params
    assert params["wandb_project"] == ODD["wandb_project"]


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}},
        {"run_name": {"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}},
        {"__prefect_kind": "json", "value": "{}"},
    ],
)
def test_an_instruction_for_prefect_makes_no_job(guarded: Guarded, body: dict[str, Any]) -> None:
    assert guarded.api.post("/train", json=body).status_code == 422
    config = {"base_model": "tiny", "dataset_name": "rows@main", "dataset_format": "auto"}
    around = {"metadata": body["metadata"]} if "metadata" in body else {}
    config |= {} if around else body
    assert guarded.api.post("/api/sft/train", json={"config": config, **around}).status_code in (400, 422)
    assert len(guarded.api.get("/train").json()) == 1


def test_no_database_holds_a_secret(guarded: Guarded) -> None:
    secrets, leaks, rows = all_secrets(guarded), [], 0
    for database in ("tuneyard", "prefect", "mlflow"):
        engine = create_engine(sibling_url(str(guarded.settings.database_url), database, "psycopg2"))
        with engine.connect() as connection:
            tables = connection.execute(text(TABLES)).scalars()
            for table in tables.all():
                for row in connection.execute(text(f"SELECT t::text FROM {table} t")).scalars():  # noqa: S608
                    rows += 1
                    leaks += [(database, table, name) for name, secret in secrets.items() if secret in row]
                    leaks += [
                        (database, table, f"{name} in bytes")
                        for name, secret in secrets.items()
                        if secret.encode().hex() in row
                    ]
        engine.dispose()
    assert leaks == []
    assert rows > 100


def test_no_file_but_the_private_ones_holds_a_secret(guarded: Guarded) -> None:
    """Logs, configurations, outputs, artifacts, W&B's files, the API's log."""
    home = guarded.settings.home
    private = {profile_path(home), home / "endpoints.json"}
    assert [path.stat().st_mode & 0o077 for path in private] == [0, 0]
    assert (home / "registries").stat().st_mode & 0o077 == 0  # git's own record of where a copy came from
    secrets, leaks, files = all_secrets(guarded), [], 0
    # Prefect's private record of how to start the job, with its environment, is gone with the job's process.
    wait_until(lambda: not [*run_folder(home).glob("tmp/prefect-workspace-*")], 60)
    for path in (Path(folder, name) for folder, _, names in os.walk(guarded.folder) for name in names):
        if path.is_file() and path not in private and home / "registries" not in path.parents:
            with suppress(FileNotFoundError):  # gone meanwhile, as the files of a server at work may be
                content, files = path.read_bytes(), files + 1
                leaks += [(path.name, name) for name, secret in secrets.items() if secret.encode() in content]
    assert leaks == []
    assert files > 30


def test_neither_webhook_nor_answers_tell_a_secret(guarded: Guarded) -> None:
    job_id = guarded.job["job_id"]
    paths = [f"/train/{job_id}", f"/train/{job_id}/logs", f"/train/{job_id}/deliveries", "/train", "/ready", "/metrics"]
    told = [answer.text for answer in map(guarded.api.get, paths)]
    told += [f"{headers} {body!r}" for headers, body in guarded.receiver.requests]
    leaks = [(text[:60], name) for text in told for name, secret in all_secrets(guarded).items() if secret in text]
    assert leaks == []
    assert guarded.receiver.requests


def test_each_log_line_is_a_record(guarded: Guarded) -> None:
    log = guarded.api.get(f"/train/{guarded.job['job_id']}/logs").text
    files = [*(guarded.settings.home / "logs").glob("*.log"), guarded.folder / "api.log"]
    for content in [log, *(file.read_text(errors="replace") for file in files)]:
        assert not [line for line in content.splitlines() if line.startswith("2026-01-01 INFO jobs: forged")]
        assert "\x1b[2J" not in content


def test_the_servers_listen_on_loopback_only(guarded: Guarded) -> None:
    ports: dict[int, str] = {}
    for process in stack_processes(guarded.settings.home):
        with suppress(psutil.NoSuchProcess):  # one that has ended since listens nowhere
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    ports[connection.laddr.port] = connection.laddr.ip
    assert {guarded.settings.prefect_port, guarded.settings.mlflow_port} <= set(ports)
    assert set(ports.values()) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer x"}])
def test_prefect_answers_nobody_without_its_password(guarded: Guarded, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=str(guarded.settings.prefect_api_url), headers=headers, timeout=60) as stranger:
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/deployments/name/finetune/sft").status_code == 401
        assert stranger.post("/flow_runs/filter", json={}).status_code in (401, 403)


def test_prefect_takes_no_change_that_a_web_page_could_have_sent(guarded: Guarded) -> None:
    words = str(find_password(guarded.settings))
    basic = {"Authorization": f"Basic {b64encode(words.encode()).decode()}"}
    with httpx.Client(base_url=str(guarded.settings.prefect_api_url), headers=basic, timeout=60) as forged:
        assert forged.post("/flow_runs/filter", json={}).status_code == 403
    with open_client(guarded.settings) as ours:
        assert ours.post("/flow_runs/filter", json={}).status_code == 200
        assert ours.post("/flow_runs/count", json={"flows": {"name": {"any_": ["finetune"]}}}).json() == 1


def test_prefects_pages_ask_for_the_password_and_its_own_client_knows_it(guarded: Guarded) -> None:
    ui = str(guarded.settings.prefect_api_url).removesuffix("/api")
    assert "<html" in httpx.get(ui, follow_redirects=True, timeout=60).text.lower()
    shown = httpx.get(f"{ui}/ui-settings", timeout=60).json()
    assert (shown["auth"], shown["csrf_enabled"]) == ("BASIC", True)
    with open_prefect_client(guarded.settings) as client:
        assert client.read_deployment_by_name("finetune/sft").name == "sft"
