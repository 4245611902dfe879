"""Starts the parts of the local stack in order, each when those that it needs are healthy."""

import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx

from jobs.clients.keys import keys_marker, list_keys
from jobs.engine.credentials import guard_server
from jobs.settings import Settings
from jobs.stack import deployments, parts, postgres
from jobs.stack.database_urls import sibling_url
from jobs.stack.process_manager import ALIVE_STATES, StackPart, Supervisor, log_path, make_run_folder
from jobs.storage.tables import engine_for, migrate
from jobs.storage.trainer_role import make_role
from sft.errors import StackError

LOG_LINES = 20


def launch(settings: Settings, supervisor: Supervisor, wanted: list[StackPart]) -> None:
    """Check the ports, make the database cluster and start supervisord, which starts nothing yet."""
    if settings.prefect_api_url is None:
        parts.check_port("Prefect", settings.prefect_port, "TUNEYARD_PREFECT_PORT")
    if settings.mlflow_tracking_uri is None:
        parts.check_port("MLflow", settings.mlflow_port, "TUNEYARD_MLFLOW_PORT")
    make_run_folder(settings.home)
    if settings.database_url is None:
        postgres.prepare_cluster(settings.home / "postgres")
    (settings.home / "prefect").mkdir(mode=0o700, exist_ok=True)
    supervisor.launch(wanted, parts.stack_environment(settings))


def bring_up(settings: Settings, resolved: Settings, supervisor: Supervisor, gpus: list[str], is_fresh: bool) -> None:
    """Start the parts in order, each until it is healthy."""
    began = datetime.now(UTC).isoformat()
    deadline = time.monotonic() + settings.start_timeout_seconds
    names = [part.name for part in parts.build_parts(settings, gpus)]

    def wait_for(name: str, check: Callable[[], bool]) -> None:
        _wait_until_healthy(settings.home, supervisor, name, check, deadline, is_fresh)

    assert resolved.database_url is not None  # noqa: S101 - for the type checker
    assert resolved.prefect_api_url is not None  # noqa: S101
    local = [name for name in ("prefect", "mlflow") if name in names]
    if "postgres" in names:
        maintenance = sibling_url(resolved.database_url, "postgres")
        supervisor.start("postgres")
        wait_for("postgres", lambda: postgres.is_ready(maintenance))
        postgres.ensure_databases(maintenance, ["tuneyard", *local])
    else:
        postgres.ensure_databases(resolved.database_url, local)
    migrate(resolved.database_url)
    if "postgres" in names:
        make_role(engine_for(resolved.database_url), resolved.database_url, with_password=False)
    if is_fresh and "prefect" in names:
        is_key_needed = (
            settings.require_api_key
            or keys_marker(settings.home).exists()
            or bool(list_keys(engine_for(resolved.database_url)))
        )
        guard_server(resolved, is_key_needed)
    for name in local:
        supervisor.start(name)
    if "prefect" in names:
        wait_for("prefect", lambda: _is_healthy(f"{resolved.prefect_api_url}/health"))
    supervisor.start("watchdog")
    if "prefect" in names:
        _bring_up_workers(settings, resolved, supervisor, gpus, began, wait_for)
    if "mlflow" in names:
        wait_for("mlflow", lambda: is_mlflow_ready(str(resolved.mlflow_tracking_uri)))
    wait_for("watchdog", lambda: postgres.has_watchdog(str(resolved.database_url)))


def _bring_up_workers(
    settings: Settings,
    resolved: Settings,
    supervisor: Supervisor,
    gpus: list[str],
    began: str,
    wait_for: Callable[[str, Callable[[], bool]], None],
) -> None:
    """Pool, interrupted runs, workers and deployments; the workers boot while the deployments are created."""
    deployments.ensure_work_pool(resolved, settings.work_pool, parts.count_workers(settings, gpus))
    processes = supervisor.processes()
    workers = [name for name in processes if name.startswith("worker-")]
    idle = [name for name in workers if processes[name].state not in ALIVE_STATES]
    if idle == workers:
        deployments.restart_interrupted_runs(resolved, settings.work_pool)
    for name in idle:
        supervisor.start(name)
    deployments.deploy(resolved, settings.work_pool, settings.home / "prefect", parts.stack_environment(settings))

    def is_online(name: str) -> bool:
        return name in deployments.online_workers(resolved, settings.work_pool, began)

    for name in idle:
        wait_for(name, functools.partial(is_online, name))


def _is_healthy(url: str) -> bool:
    """Whether a part responds; one that is starting may refuse, hang up or be slow."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def is_mlflow_ready(url: str, timeout_seconds: float = 60) -> bool:
    """Whether it serves its database. It creates its tables on the first request, which must be the only one."""
    if not _is_healthy(f"{url}/health"):
        return False
    try:
        search = httpx.post(
            f"{url}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            timeout=timeout_seconds,
            trust_env=False,
        )
    except httpx.TransportError:
        return False
    return search.status_code == httpx.codes.OK


def _wait_until_healthy(
    home: Path, supervisor: Supervisor, name: str, check: Callable[[], bool], deadline: float, is_fresh: bool
) -> None:
    """Wait for a part; one that fails on a first start fails at once. Raises StackError with its last log lines."""
    while not check():
        process = supervisor.processes().get(name)
        state = process.state if process else "GONE"
        has_failed = state in ("FATAL", "GONE") or (is_fresh and state == "BACKOFF")
        if has_failed or time.monotonic() > deadline:
            path = log_path(home, name)
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            why = f"did not start ({state})" if has_failed else "took longer than TUNEYARD_START_TIMEOUT_SECONDS"
            raise StackError("\n".join([f"{name} {why}; the end of {path}:", *text.splitlines()[-LOG_LINES:]]))
        time.sleep(0.1)
