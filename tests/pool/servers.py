"""The servers that the hosts of a pool share: PostgreSQL, Prefect and MLflow with passwords, and S3."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe

import boto3
import httpx
import psycopg2
from psycopg2 import sql

from jobs.project import code_environment
from jobs.stack import postgres
from jobs.stack.database_urls import local_url, sibling_url
from tests.conftest import free_port
from tests.pool.gate import Gate

BUCKET = "pool"
OWNER = "pool"  # of the databases
DATABASES = ("prefect", "mlflow", "tuneyard")
START_SECONDS = 180.0
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
AUTHENTICATION = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = trainer
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True)
class Servers:
    """Where they are, and what their clients need."""

    database_url: str
    prefect_url: str
    prefect_password: str  # user:password
    mlflow_url: str
    mlflow_password: str
    s3_url: str  # not by the gate
    gate: Gate

    @property
    def s3(self) -> Mapping[str, str]:
        """Credentials of S3."""
        return {
            "AWS_ACCESS_KEY_ID": "pool",
            "AWS_SECRET_ACCESS_KEY": self.mlflow_password,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client_environment(self) -> dict[str, str]:
        """The variables of a host of Tuneyard's."""
        return {
            "TUNEYARD_DATABASE_URL": self.database_url,
            "PREFECT_API_URL": self.prefect_url,
            "PREFECT_API_AUTH_STRING": self.prefect_password,
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_TRACKING_USERNAME": "trainer",
            "MLFLOW_TRACKING_PASSWORD": self.mlflow_password,
            "TUNEYARD_STORE": f"s3://{BUCKET}/tuneyard",
            "AWS_ENDPOINT_URL": self.gate.url,
            **self.s3,
        }

    def open_s3(self) -> "boto3.client":
        """A client that does not go through the gate."""
        keys = {"aws_access_key_id": "pool", "aws_secret_access_key": self.mlflow_password}
        return boto3.client("s3", endpoint_url=self.s3_url, region_name="us-east-1", **keys)

    def open_prefect(self) -> httpx.Client:
        """A client of Prefect's API."""
        user, _, password = self.prefect_password.partition(":")
        return httpx.Client(base_url=self.prefect_url, auth=(user, password), timeout=30)


@contextmanager
def running_servers(folder: Path, address: str) -> Iterator[Servers]:
    """All of them, listening at this address, with their state and logs in the folder."""
    started: list[tuple[subprocess.Popen[bytes], signal.Signals]] = []
    gates: list[Gate] = []

    def start(
        name: str, command: Sequence[str], environment: Mapping[str, str], stop: signal.Signals = signal.SIGTERM
    ) -> None:
        with (folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=_environment(folder, environment), cwd=folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        started.append((process, stop))

    try:
        s3_port = free_port()
        start("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)], {})
        database_url = _start_postgres(folder, address, start)
        prefect_url, prefect_password = _start_prefect(folder, address, database_url, start)
        mlflow_url, mlflow_password = _start_mlflow(folder, address, database_url, start)
        gates.append(Gate(address, ("127.0.0.1", s3_port)))
        s3_url = f"http://127.0.0.1:{s3_port}"
        servers = Servers(database_url, prefect_url, prefect_password, mlflow_url, mlflow_password, s3_url, gates[0])
        for url in (s3_url, f"{prefect_url}/health", f"{mlflow_url}/health"):
            wait_for(lambda url=url: _responds(url), f"{url}; see {folder}")
        servers.open_s3().create_bucket(Bucket=BUCKET)
        yield servers
    finally:
        for gate in gates:
            gate.close()
        for process, stop in reversed(started):
            _end(process, stop)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Return once the condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


def _start_postgres(folder: Path, address: str, start: Callable[..., None]) -> str:
    """A cluster that asks for passwords; the URL of Tuneyard's database."""
    data, port, password = folder / "postgres", free_port(), token_urlsafe()
    postgres.prepare_cluster(data)
    with (data / "pg_hba.conf").open("w", encoding="utf-8") as rules:
        rules.write("local all postgres trust\nhost all all all scram-sha-256\n")
    more = {"listen_addresses": address, "port": port, "fsync": "off"}
    options = [word for name, value in more.items() for word in ("-c", f"{name}={value}")]
    start("postgres", [*postgres.server_command(data), *options], {}, signal.SIGINT)
    admin = f"{local_url(data, 'postgres')}&port={port}"
    wait_for(lambda: postgres.is_ready(admin), f"PostgreSQL; see {folder / 'postgres.log'}")
    connection = psycopg2.connect(host=str(data), port=port, user="postgres", dbname="postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        owner = sql.Identifier(OWNER)
        role = sql.SQL("CREATE ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD {}")
        cursor.execute(role.format(owner, sql.Literal(password)))
        for name in DATABASES:
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), owner))
    connection.close()
    return f"postgresql://{OWNER}:{password}@{address}:{port}/tuneyard"


def _start_prefect(folder: Path, address: str, database_url: str, start: Callable[..., None]) -> tuple[str, str]:
    port, password = free_port(), f"pool:{token_urlsafe()}"
    environment = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": sibling_url(database_url, "prefect", "asyncpg"),
        "PREFECT_UI_STATIC_DIRECTORY": str(folder / "prefect-ui"),
    }
    server = [sys.executable, "-m", "prefect", "server", "start", "--host", address, "--port", str(port)]
    start("prefect", server, environment)
    return f"http://{address}:{port}/api", password


def _start_mlflow(folder: Path, address: str, database_url: str, start: Callable[..., None]) -> tuple[str, str]:
    port, password = free_port(), token_urlsafe()
    rules = folder / "mlflow-users.ini"
    rules.touch(mode=0o600)
    rules.write_text(AUTHENTICATION.format(folder=folder, password=password), encoding="utf-8")
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(rules),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": token_urlsafe(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    server = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    server += ["--host", address, "--port", str(port), "--allowed-hosts", "*"]
    server += ["--backend-store-uri", sibling_url(database_url, "mlflow")]
    server += ["--artifacts-destination", str(folder / "artifacts")]
    start("mlflow", server, environment)
    return f"http://{address}:{port}", password


def _environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    return code_environment(kept | QUIET | {"HOME": str(folder), "TMPDIR": str(folder)} | dict(more))


def _responds(url: str) -> bool:
    try:
        return not httpx.get(url, timeout=5, trust_env=False).is_server_error
    except httpx.TransportError:
        return False


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
