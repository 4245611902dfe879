"""The local stack: PostgreSQL, Prefect server, MLflow server, deployments and workers, started on first use.

All processes on the machine that name the same state folder share one stack. It outlives whoever started it,
until `down`.
"""

import dataclasses
import functools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock
import httpx
import psutil
from sqlalchemy import make_url

from jobs.clients.keys import keys_marker, list_keys
from jobs.engine.credentials import guard_server
from jobs.engine.processes import is_job_process
from jobs.folders import make_home
from jobs.network.proxies import bypass_proxies
from jobs.privacy import tighten
from jobs.settings import Settings
from jobs.stack import deployments, parts, postgres
from jobs.stack.endpoints import VARIABLES, Endpoints
from jobs.stack.process_manager import (
    ALIVE_STATES,
    Part,
    Supervisor,
    kill_processes,
    log_path,
    make_run_folder,
    run_folder,
    stack_processes,
)
from jobs.storage.tables import WATCHDOG_LOCK, engine_for, migrate
from sft.errors import StackError

logger = logging.getLogger(__name__)

LOG_LINES = 20
SAVE_SECONDS = 20.0  # for jobs to save their last step when the stack is stopped


class StackBusy(StackError):
    """Another process starts, repairs or stops the stack for longer than somebody would wait."""


@dataclass(frozen=True)
class PartStatus:
    """One line of `tuneyard status`. `state` is supervisord's, or EXTERNAL for somebody else's server."""

    name: str
    state: str
    pid: int | None
    address: str
    uptime_seconds: float | None
    log_path: Path | None


def ensure_up(settings: Settings) -> Settings:
    """Make sure the stack of `settings.home` is up; a copy of `settings` with every address filled in.

    A stack that is up keeps the ports it was started with. With `settings.is_external` nothing is started.

    Raises:
        StackError: a port is taken or a part does not come up; what was started is stopped again.
    """
    if settings.is_external:
        return settings
    running = _running_stack(settings)
    if running is None:
        make_home(settings.home)
        with _locked(settings):
            running = _running_stack(settings) or _start(settings)
    return running


def repair(settings: Settings, environment: Mapping[str, str] | None = None, is_patient: bool = True) -> list[str]:
    """Make again what somebody has deleted from the local Prefect server while the stack is up; what that was.

    Nothing is done where the server is somebody else's.

    Args:
        settings: of the stack that is up, as `ensure_up` returns them.
        environment: that of a part of the stack; by default it is made as for one.
        is_patient: wait for another process that starts, stops or repairs the stack; else leave it to that one.

    Raises:
        StackError: it can't be made.
        httpx.HTTPError: Prefect can't be reached.
    """
    endpoints = Endpoints.read(settings.home)
    if endpoints is None or not endpoints.ready or "prefect_api_url" not in endpoints.local:
        return []
    missing = deployments.find_missing(settings, settings.work_pool)
    if missing:
        if environment is None:
            unset = dict.fromkeys(endpoints.local)
            environment = parts.stack_environment(settings.model_copy(update=unset))
            environment["PREFECT_API_URL"] = str(settings.prefect_api_url)
        try:
            with _locked(settings, None if is_patient else 0.0):
                workers = parts.count_workers(settings, list(endpoints.gpus))
                deployments.ensure_work_pool(settings, settings.work_pool, workers)
                deployments.deploy(settings, settings.work_pool, settings.home / "prefect", environment)
        except StackBusy:
            if is_patient:
                raise
            return []
    return missing


def is_up(settings: Settings) -> bool:
    """Whether every part that these settings need is up; starts nothing."""
    return settings.is_external or _running_stack(settings) is not None


def down(settings: Settings) -> bool:
    """Stop all that this state folder's stack runs, jobs included; false when nothing ran.

    A job that was running stays `Running` in the stopped database; the next `ensure_up` puts the same run back
    into the queue, from where it resumes.
    """
    if not settings.home.exists():
        return False
    with _locked(settings):
        return _stop(settings.home)


def status(settings: Settings) -> list[PartStatus]:
    """Every part of the stack, running or not, and the servers that are somebody else's."""
    endpoints = Endpoints.read(settings.home)
    used = endpoints.fill(settings) if endpoints else parts.fill_addresses(settings)
    running = Supervisor(settings.home).processes() if settings.home.exists() else {}
    database = make_url(str(used.database_url)).render_as_string(hide_password=True)
    addresses = {"postgres": database, "prefect": used.prefect_api_url, "mlflow": used.mlflow_tracking_uri}
    lines = []
    for part in parts.build_parts(settings, []) if not running else running.values():
        process = running.get(part.name)
        is_alive = process is not None and process.pid is not None
        lines.append(
            PartStatus(
                part.name,
                process.state if process else "STOPPED",
                process.pid if process else None,
                addresses.get(part.name) or (settings.work_pool if part.name.startswith("worker-") else ""),
                time.time() - process.started_at if process and is_alive else None,
                log_path(settings.home, part.name),
            )
        )
    local = {line.name for line in lines}
    external = [PartStatus(n, "EXTERNAL", None, str(a), None, None) for n, a in addresses.items() if n not in local]
    return external + lines


@contextmanager
def _locked(settings: Settings, patience_seconds: float | None = None) -> Iterator[None]:
    """One process at a time starts, repairs or stops the stack of a state folder. Raises StackBusy."""
    seconds = settings.start_timeout_seconds + 60 if patience_seconds is None else patience_seconds
    try:
        lock = filelock.FileLock(settings.home / "stack.lock", timeout=seconds).acquire()
    except filelock.Timeout as error:
        raise StackBusy(
            f"another process has been starting or stopping the stack in {settings.home} for {seconds:.0f} s; "
            f"see {settings.home / 'logs'}"
        ) from error
    with lock:
        yield


def _running_stack(settings: Settings) -> Settings | None:
    """The settings of the stack if it is wholly up; takes a few milliseconds."""
    endpoints = Endpoints.read(settings.home)
    if endpoints is None or not endpoints.ready:
        return None
    processes = Supervisor(settings.home).processes()
    if not processes or any(process.state not in ALIVE_STATES for process in processes.values()):
        return None
    local = [endpoints.addresses[name] for name in endpoints.local if name != "database_url"]
    return endpoints.fill(settings) if all(map(parts.answers, local)) else None


def _start(settings: Settings) -> Settings:
    """Start all parts, or those that are missing from a stack that is up in part. Holds the lock."""
    supervisor, endpoints = Supervisor(settings.home), Endpoints.read(settings.home)
    if endpoints is not None and supervisor.processes():
        resolved = endpoints.fill(settings)
        _bring_up(settings, resolved, supervisor, list(endpoints.gpus), is_fresh=False)
    else:
        _stop(settings.home)  # what a killed supervisord has left behind
        if closed := tighten(settings.home):
            logger.info("%d files and folders in %s are closed to other accounts now", closed, settings.home)
        gpus = parts.visible_gpus(os.environ, parts.nvidia_smi)
        resolved = parts.fill_addresses(settings)
        local = tuple(name for name in VARIABLES if getattr(settings, name) is None)
        for note in bypass_proxies(dict(os.environ)):
            logger.warning(note)
        endpoints = Endpoints(False, {name: getattr(resolved, name) for name in VARIABLES}, local, tuple(gpus))
        try:
            _launch(settings, supervisor, parts.build_parts(settings, gpus))
            endpoints.write(settings.home)
            _bring_up(settings, resolved, supervisor, gpus, is_fresh=True)
        except BaseException:
            _stop(settings.home)
            raise
    endpoints = dataclasses.replace(endpoints, ready=True)
    endpoints.write(settings.home)
    return endpoints.fill(settings)


def _launch(settings: Settings, supervisor: Supervisor, wanted: list[Part]) -> None:
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


def _bring_up(settings: Settings, resolved: Settings, supervisor: Supervisor, gpus: list[str], is_fresh: bool) -> None:
    """Start part after part as its needs are met, each until it is healthy."""
    began = datetime.now(UTC).isoformat()
    deadline = time.monotonic() + settings.start_timeout_seconds
    names = [part.name for part in parts.build_parts(settings, gpus)]

    def wait_for(name: str, check: Callable[[], bool]) -> None:
        _wait_until_healthy(settings.home, supervisor, name, check, deadline, is_fresh)

    assert resolved.database_url is not None  # noqa: S101 - for the type checker
    assert resolved.prefect_api_url is not None  # noqa: S101
    local = [name for name in ("prefect", "mlflow") if name in names]
    if "postgres" in names:
        maintenance = postgres.sibling_url(resolved.database_url, "postgres")
        supervisor.start("postgres")
        wait_for("postgres", lambda: postgres.is_ready(maintenance))
        postgres.ensure_databases(maintenance, ["tuneyard", *local])
    else:
        postgres.ensure_databases(resolved.database_url, local)
    migrate(resolved.database_url)
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
        wait_for("mlflow", lambda: _is_mlflow_ready(str(resolved.mlflow_tracking_uri)))
    wait_for("watchdog", lambda: postgres.is_locked(str(resolved.database_url), WATCHDOG_LOCK))


def _bring_up_workers(
    settings: Settings,
    resolved: Settings,
    supervisor: Supervisor,
    gpus: list[str],
    began: str,
    wait_for: Callable[[str, Callable[[], bool]], None],
) -> None:
    """Pool, cut-off runs, workers and deployments; the workers boot while the deployments are made."""
    deployments.ensure_work_pool(resolved, settings.work_pool, parts.count_workers(settings, gpus))
    processes = supervisor.processes()
    workers = [name for name in processes if name.startswith("worker-")]
    idle = [name for name in workers if processes[name].state not in ALIVE_STATES]
    if idle == workers:
        deployments.restart_cut_off_runs(resolved, settings.work_pool)
    for name in idle:
        supervisor.start(name)
    deployments.deploy(resolved, settings.work_pool, settings.home / "prefect", parts.stack_environment(settings))

    def is_online(name: str) -> bool:
        return name in deployments.online_workers(resolved, settings.work_pool, began)

    for name in idle:
        wait_for(name, functools.partial(is_online, name))


def _is_healthy(url: str) -> bool:
    """Whether a part answers; one that starts may refuse, hang up or take its time."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _is_mlflow_ready(url: str, timeout_seconds: float = 60) -> bool:
    """Whether it serves its database: it makes its tables when first asked, one caller at a time must do so."""
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


def _stop(home: Path) -> bool:
    """Workers and jobs first, which may save their last step; then the servers; then whatever is left."""
    supervisor = Supervisor(home)
    processes = supervisor.processes()
    for name in (name for name in processes if name.startswith("worker-")):
        supervisor.stop(name)  # its jobs are told to stop by the kernel
    deadline = time.monotonic() + SAVE_SECONDS
    while any(map(is_job_process, stack_processes(home))) and processes and time.monotonic() < deadline:
        time.sleep(0.1)
    daemon = supervisor.pid()
    if daemon is not None:
        kill_processes([process for process in stack_processes(home) if not _belongs_to(process, daemon)])
        supervisor.shut_down()
    left = stack_processes(home)
    kill_processes(left)
    (home / "endpoints.json").unlink(missing_ok=True)
    shutil.rmtree(run_folder(home), ignore_errors=True)
    return bool(processes or left)


def _belongs_to(process: psutil.Process, pid: int) -> bool:
    """Whether it is this process or descends from it."""
    try:
        return process.pid == pid or any(parent.pid == pid for parent in process.parents())
    except psutil.NoSuchProcess:
        return True
