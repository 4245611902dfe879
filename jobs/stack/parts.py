"""The parts of the local stack: processes, environment, addresses."""

import json
import os
import socket
import sys
from pathlib import Path

import psutil

from jobs.mlflow_server import MlflowServer
from jobs.network.proxies import bracket, bypass_proxies
from jobs.project import code_environment
from jobs.settings import NO_MLFLOW_CREDENTIALS, Settings
from jobs.stack import postgres
from jobs.stack.database_urls import asyncpg_environment, database_url, find_trainer_url
from jobs.stack.gpus import share_gpus
from jobs.stack.postgres import has_account
from jobs.stack.process_manager import StackPart, plain_home, run_folder
from sft.errors import StackError
from sft.files.disk import find_existing
from sft.files.places import find_temporary
from tuneyard_wire.loopback import is_on_this_machine

LOCALHOST = "127.0.0.1"
PYTHON = [sys.executable, "-P", "-m"]  # -P: the state folder's folders must not be taken for packages
WORKER_POLL_SECONDS = 1

# Usage reports that the parts and the libraries in them would send to their makers. `jobs.stack.pages` stops those that
# no variable does.
NO_REPORTS = {
    "DO_NOT_TRACK": "1",  # Prefect's client
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "WANDB_ERROR_REPORTING": "false",
}

# Turning off more of Prefect's background services saves nothing measurable when idle; the cost is their one poller (4%
# of a core) and each worker's polling (1% each, 3.5% at 0.5 s).
PREFECT_SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",  # a job that waits its turn is not late
}


def fill_addresses(settings: Settings) -> Settings:
    """A copy of the settings with local addresses for those that are not configured."""
    return settings.model_copy(
        update={
            "database_url": database_url(settings, "tuneyard"),
            "trainer_database_url": find_trainer_url(settings),
            "prefect_api_url": settings.prefect_api_url or f"http://{LOCALHOST}:{settings.prefect_port}/api",
            **(NO_MLFLOW_CREDENTIALS if settings.mlflow_tracking_uri is None else {}),
            "mlflow_tracking_uri": settings.mlflow_tracking_uri or f"http://{LOCALHOST}:{settings.mlflow_port}",
        }
    )


def build_parts(settings: Settings, gpus: list[str]) -> list[StackPart]:
    """The processes to run here, in starting order."""
    parts = []
    if settings.database_url is None:
        command = postgres.server_command(plain_home(settings.home) / "postgres")
        parts.append(StackPart("postgres", command, 10, stop_signal="INT"))
    if settings.prefect_api_url is None:
        address = ["--host", LOCALHOST, "--port", str(settings.prefect_port)]
        parts.append(StackPart("prefect", [*PYTHON, "jobs.stack.pages", "prefect", *address], 20))
    if settings.mlflow_tracking_uri is None:
        address = ["--host", LOCALHOST, "--port", str(settings.mlflow_port)]
        # The app that `mlflow server` runs in a child of a process that imports MLflow too and then only waits: without
        # that, 180 MB and 4 s less, and no child that keeps the port when its parent is killed.
        parts.append(StackPart("mlflow", [*PYTHON, "jobs.stack.pages", "mlflow", *address], 20))
    if settings.prefect_api_url is None:
        parts += [_worker(settings, number, gpus) for number in range(count_workers(settings, gpus))]
    if not settings.is_external:
        scope = ["--local"] if settings.prefect_api_url is None else []
        parts.append(StackPart("watchdog", [*PYTHON, "jobs.watchdog", *scope], 30, stop_signal="KILL"))  # made for it
    return parts


def _worker(settings: Settings, number: int, gpus: list[str]) -> StackPart:
    name = f"worker-{number}"
    command = [*PYTHON, "jobs.stack.launch", "--parent", "--trainer", "--"]
    command += [*PYTHON, "prefect", "worker", "start", "--type", "process", "--name", name]
    command += ["--pool", settings.work_pool, "--limit", "1", "--prefetch-seconds", "0"]
    share = share_gpus(gpus, number, count_workers(settings, gpus))
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(share)} if share else {}
    # SIGKILL: on SIGTERM the worker would report an end of its running job.
    return StackPart(name, command, 30, stop_signal="KILL", environment=environment)


def count_workers(settings: Settings, gpus: list[str]) -> int:
    """Number of workers here: as configured, else one per GPU, else one."""
    return settings.workers or len(gpus) or 1


def stack_environment(settings: Settings) -> dict[str, str]:
    """The environment of every part: this process's, with the stack's own values.

    Prefect's and MLflow's variables, with credentials, are kept for servers of your own.

    The stack has its own temporary folder, removed when it stops: Prefect's would be shared by all users of the
    machine and writable only by the first. Jobs may still be configured to write to the usual one.
    """
    roots = (*settings.allowed_output_roots, find_temporary())
    resolved = fill_addresses(settings).model_copy(update={"allowed_output_roots": roots})
    ours = {"PREFECT_": settings.prefect_api_url is None, "MLFLOW_": settings.mlflow_tracking_uri is None}
    foreign = ("TUNEYARD_", *(prefix for prefix, is_ours in ours.items() if is_ours))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment = code_environment(kept)
    home = plain_home(settings.home)
    for name, value in resolved.model_dump(mode="json", exclude_none=True).items():
        if Settings.model_fields[name].validation_alias is None:
            environment[f"TUNEYARD_{name.upper()}"] = value if isinstance(value, str) else json.dumps(value)
    environment |= MlflowServer.find(resolved).environment()
    environment |= NO_REPORTS | {
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(run_folder(settings.home) / "tmp"),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": str(resolved.prefect_api_url),
        "MLFLOW_TRACKING_URI": str(resolved.mlflow_tracking_uri),
        "PREFECT_WORKER_QUERY_SECONDS": str(WORKER_POLL_SECONDS),
    }
    if settings.prefect_api_url and settings.prefect_auth_string:  # it may have been a part of the address
        environment["PREFECT_API_AUTH_STRING"] = settings.prefect_auth_string.get_secret_value()
    if settings.prefect_api_url is None:
        environment |= PREFECT_SERVER | asyncpg_environment(settings.database_url)
        environment |= {
            "PREFECT_SERVER_API_HOST": LOCALHOST,
            "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url(settings, "prefect", "asyncpg"),
            "PREFECT_UI_STATIC_DIRECTORY": str(
                home / "prefect" / "ui"
            ),  # else a copy is made where Prefect is installed
        }
    if settings.mlflow_tracking_uri is None:
        mlflow_database = database_url(settings, "mlflow")
        environment |= {
            "_MLFLOW_SERVER_FILE_STORE": mlflow_database,
            "_MLFLOW_SERVER_REGISTRY_STORE": mlflow_database,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(home / "mlartifacts"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
    bypass_proxies(environment, own_hosts(settings))
    place_caches(environment, home)
    return environment


def place_caches(environment: dict[str, str], home: Path) -> None:
    """Give the parts a home, a user name and a writable cache if the user has none, as in a container.

    Models in a read-only Hub cache are still found.
    """
    user = Path(environment.get("HOME") or "~").expanduser()
    if not user.is_dir():
        user = home
    environment["HOME"] = str(user)
    if not environment.keys() & {"LOGNAME", "USER"} and not has_account(os.getuid()):
        environment["USER"] = f"uid-{os.getuid()}"  # torch asks for a user name and fails without one
    cache = Path(environment.get("XDG_CACHE_HOME") or user / ".cache")
    if os.access(cache if cache.exists() else find_existing(cache), os.W_OK):
        return
    hub = cache / "huggingface" / "hub"
    if hub.is_dir() and not environment.keys() & {"HF_HOME", "HF_HUB_CACHE"}:
        environment["HF_HUB_CACHE"] = str(hub)
    environment["XDG_CACHE_HOME"] = str(home / "cache")


def own_hosts(settings: Settings) -> list[str]:
    """The API's address if others may use it to reach this machine; none for a wildcard address."""
    return [] if is_on_this_machine(f"http://{bracket(settings.host)}") else [settings.host]


def check_port(part: str, port: int, variable: str, host: str = LOCALHOST) -> None:
    """Check that a port is free on `host`. Raises StackError naming part, port, holder and setting."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"{part} needs port {port}, which is taken{_holder(port)}; "
                f"stop that process or set {variable} to a free port"
            ) from error


def _holder(port: int) -> str:
    """`` by pid 12 (python)`` if the system reveals it."""
    try:
        for connection in psutil.net_connections("tcp"):
            is_holder = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if is_holder and connection.pid is not None:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""


def answers(url: str) -> bool:
    """Whether something listens at this URL's host and port."""
    host, port = url.split("//", 1)[1].split("/", 1)[0].rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=0.5).close()
    except OSError:
        return False
    return True
