"""The services of the compose file as processes: its commands, variables, secret files and health checks, and a job."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest

from jobs.project import PROJECT_ROOT
from jobs.stack import postgres
from jobs.stack.database_urls import local_url
from jobs.storage.schema import known_revisions
from tests.conftest import free_port, wait_until
from tests.deploy.compose_file import FOLDER, read_compose, secrets_of
from tests.tiny_models import save_tiny_llama

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

ANYWHERE = "0.0.0.0"  # noqa: S104 - replaced
PORTS = ("5432", "4200", "5000", "23478", "8080")
OWN = ("TUNEYARD_", "PREFECT_", "MLFLOW_", "AWS_", "PG")


class Project:
    """What Compose does with the file, without containers: a folder and a process for each service, on free ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = read_compose("compose.yaml")["services"]
        self.ports = {port: str(free_port()) for port in PORTS}
        self.secrets = folder / "secrets"
        self._processes: list[subprocess.Popen[bytes]] = []
        subprocess.run([FOLDER / "make-secrets.sh", self.secrets], check=True)

    def here(self, text: str) -> str:
        """With the services' names, ports and folders replaced by those of this machine."""
        ports = "|".join(PORTS)
        text = re.sub(
            rf"\b(?:postgres|prefect|mlflow):({ports})\b", r"127.0.0.1:\1", text.replace(ANYWHERE, "127.0.0.1")
        )
        text = re.sub(rf"\b({ports})\b", lambda found: self.ports[found[1]], text)
        return text.replace("file:///store", f"file://{self.folder}/store")

    def environment(self, name: str) -> dict[str, str]:
        """Of a service, with its secrets in files."""
        home, files = self.folder / name, self.folder / f"secrets-of-{name}"
        for folder in (home, files):
            folder.mkdir(mode=0o700, exist_ok=True)
        for target, source in secrets_of(self.services[name]).items():
            (files / target).write_text(self.here((self.secrets / source).read_text()))
        given = {key: value for key, value in self.services[name].get("environment", {}).items() if value is not None}
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(OWN)},
            **{key: self.here(value).replace("/var/lib/tuneyard", str(home)) for key, value in given.items()},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT_ROOT),
            "SECRETS_FOLDER": str(files),
            "HOME": str(home),
            "TUNEYARD_HOME": str(home),
            "PREFECT_WORKER_WEBSERVER_PORT": self.ports["8080"],
            "DO_NOT_TRACK": "1",
        }

    def run(self, name: str, command: Sequence[str]) -> str:
        """A command in a service's environment, to its end; its output."""
        words = [str(FOLDER / "entrypoint.sh"), *command]
        done = subprocess.run(
            words, env=self.environment(name), cwd=self.folder / name, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str) -> None:
        """A service's own command."""
        command = [self.here(word) for word in self.services[name]["command"]]
        self.spawn(name, [str(FOLDER / "entrypoint.sh"), *command], self.environment(name))

    def spawn(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, cwd=self.folder / name, stdout=log, stderr=log)
        self._processes.append(process)

    def wait_healthy(self, name: str) -> None:
        """Until the service's health check succeeds."""
        words = [self.here(word) for word in self.services[name]["healthcheck"]["test"][1:]]
        words[0] = sys.executable

        def is_healthy() -> bool:
            return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0

        try:
            wait_until(is_healthy, 250)
        except Exception as error:
            raise AssertionError((self.folder / f"{name}.log").read_text()[-4000:]) from error

    def close(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("compose"))
    try:
        start_postgres(made)
        for name in ("prefect", "mlflow"):
            made.start(name)
        for name in ("prefect", "mlflow"):
            made.wait_healthy(name)
        yield made
    finally:
        made.close()


def start_postgres(made: Project) -> None:
    """A server that asks for passwords, with the databases that the file's script makes."""
    data = made.folder / "postgres"
    postgres.prepare_cluster(data)
    (data / "pg_hba.conf").write_text("local all postgres trust\nhost all all all scram-sha-256\n")
    port = made.ports["5432"]
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "fsync=off"]
    made.spawn("postgres", [*postgres.server_command(data), *options], os.environ | {"PYTHONPATH": str(PROJECT_ROOT)})
    wait_until(lambda: postgres.is_ready(f"{local_url(data, 'postgres')}&port={port}"), 90)
    programs = Path(postgres._binary("postgres", None)).parent
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PGHOST": str(data),
        "PGPORT": port,
        "SECRETS_FOLDER": str(made.secrets),
    }
    done = subprocess.run(["sh", FOLDER / "databases.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_job_runs_to_its_adapter(project: Project):
    """The steps of docs/operations/compose.md."""
    assert "prefect worker start --pool gpu --type process --limit 1" in project.run(
        "setup", project.services["setup"]["command"]
    )
    owners_url = project.here((project.secrets / "database-url").read_text()).replace("+psycopg2", "")
    with closing(psycopg2.connect(owners_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT version_num FROM alembic_version")
        assert cursor.fetchall() == [known_revisions()[-1:]], "the setup migrates the schema"
    url = project.run("setup", ["tuneyard", "trainer-role"]).strip()
    (project.secrets / "trainer-database-url").write_text(url)
    made = project.run("api", ["tuneyard", "keys", "create", "me", "--scope", "admin", "--json"])
    headers = {"Authorization": f"Bearer {json.loads(made)['key']}"}
    for name in ("worker", "api"):
        save_tiny_llama(project.folder / name / "models" / "tiny")
    for name in ("api", "watchdog", "worker"):
        project.start(name)
    for name in ("api", "worker"):
        project.wait_healthy(name)
    body = {"model_name": "tiny", "dataset_version": "v1.0", "template": "chatml", "lora_name": "composed"}
    body |= {"max_steps": 2, "max_samples": 8, "cutoff_len": 128, "mixed_precision": "none"}
    with httpx.Client(base_url=f"http://127.0.0.1:{project.ports['23478']}", headers=headers, timeout=60) as api:
        assert httpx.get(f"{api.base_url}/train", timeout=30).status_code == 401
        submitted = api.post("/train", json=body)
        assert submitted.is_success, submitted.text
        job_id = submitted.json()["job_id"]
        deadline = time.monotonic() + 300

        def ask() -> dict[str, Any]:
            response = api.get(f"/train/{job_id}")
            if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # told to try again, on a loaded machine
                return {"status": "queued", "told": response.text}
            assert response.is_success, response.text
            found: dict[str, Any] = response.json()
            return found

        while (job := ask())["status"] in ("queued", "running"):
            assert time.monotonic() < deadline, job
            time.sleep(1)
        assert job["status"] == "completed", job
        assert api.get(f"/train/{job_id}/adapter").is_success
