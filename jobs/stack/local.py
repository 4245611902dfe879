"""The local stack: PostgreSQL, Prefect server, MLflow server, deployments and workers, started on first use.

All processes on the machine with the same state folder share one stack. It runs until `down`, even if the process
that started it ends.
"""

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import psutil
from sqlalchemy import make_url

from jobs.engine.processes import is_job_process
from jobs.folders import make_home
from jobs.network.proxies import bypass_proxies
from jobs.privacy import tighten
from jobs.settings import Settings
from jobs.stack import deployments, parts
from jobs.stack.endpoints import VARIABLES, Endpoints
from jobs.stack.gpus import nvidia_smi, visible_gpus
from jobs.stack.process_manager import (
    ALIVE_STATES,
    Supervisor,
    kill_processes,
    log_path,
    run_folder,
    stack_processes,
)
from jobs.stack.startup import bring_up, launch
from sft.errors import StackError

logger = logging.getLogger(__name__)

SAVE_SECONDS = 20.0  # for jobs to save their last step when the stack stops


class StackBusy(StackError):
    """Another process has been starting, repairing or stopping the stack for too long."""


@dataclass(frozen=True)
class PartStatus:
    """One line of `tuneyard status`. `state` is supervisord's, or EXTERNAL for a server of your own."""

    name: str
    state: str
    pid: int | None
    address: str
    uptime_seconds: float | None
    log_path: Path | None


def ensure_up(settings: Settings) -> Settings:
    """Start the stack of `settings.home` if needed; returns a copy of `settings` with every address filled in.

    A running stack keeps the ports it was started with. With `settings.is_external` nothing is started.

    Raises:
        StackError: a port is taken or a part does not start; started parts are stopped again.
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
    """Re-create what was deleted in the local Prefect server while the stack runs; returns what that was.

    Does nothing for a Prefect server of your own.

    Args:
        settings: of the running stack, as returned by `ensure_up`.
        environment: that of a part of the stack; built if None.
        is_patient: wait for another process that starts, stops or repairs the stack; otherwise leave it to that one.

    Raises:
        StackError: it can't be re-created.
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
    """Whether every part that these settings need is running; starts nothing."""
    return settings.is_external or _running_stack(settings) is not None


def down(settings: Settings) -> bool:
    """Stop this state folder's stack with its jobs; False if nothing ran.

    A running job stays `Running` in the stopped database; the next `ensure_up` puts the same run back into the queue,
    and it resumes.
    """
    if not settings.home.exists():
        return False
    with _locked(settings):
        return _stop(settings.home)


def status(settings: Settings) -> list[PartStatus]:
    """Every part of the stack, running or not, and servers of your own."""
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
    """Lock that lets one process at a time start, repair or stop a state folder's stack. Raises StackBusy."""
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
    """The settings of the stack if all of it runs; takes a few milliseconds."""
    endpoints = Endpoints.read(settings.home)
    if endpoints is None or not endpoints.ready:
        return None
    processes = Supervisor(settings.home).processes()
    if not processes or any(process.state not in ALIVE_STATES for process in processes.values()):
        return None
    local = [endpoints.addresses[name] for name in endpoints.local if name != "database_url"]
    return endpoints.fill(settings) if all(map(parts.answers, local)) else None


def _start(settings: Settings) -> Settings:
    """Start all parts that do not run. The caller holds the lock."""
    supervisor, endpoints = Supervisor(settings.home), Endpoints.read(settings.home)
    if endpoints is not None and supervisor.processes():
        resolved = endpoints.fill(settings)
        bring_up(settings, resolved, supervisor, list(endpoints.gpus), is_fresh=False)
    else:
        _stop(settings.home)  # leftovers of a killed supervisord
        if closed := tighten(settings.home):
            logger.info("Made %d files and folders in %s private", closed, settings.home)
        gpus = visible_gpus(os.environ, nvidia_smi)
        resolved = parts.fill_addresses(settings)
        local = tuple(name for name in VARIABLES if getattr(settings, name) is None)
        for note in bypass_proxies(dict(os.environ)):
            logger.warning(note)
        endpoints = Endpoints(False, {name: getattr(resolved, name) for name in VARIABLES}, local, tuple(gpus))
        try:
            launch(settings, supervisor, parts.build_parts(settings, gpus))
            endpoints.write(settings.home)
            bring_up(settings, resolved, supervisor, gpus, is_fresh=True)
        except BaseException:
            _stop(settings.home)
            raise
    endpoints = dataclasses.replace(endpoints, ready=True)
    endpoints.write(settings.home)
    return endpoints.fill(settings)


def _stop(home: Path) -> bool:
    """Stop workers and jobs, which save their last step; then the servers; then any process that is left."""
    supervisor = Supervisor(home)
    processes = supervisor.processes()
    for name in (name for name in processes if name.startswith("worker-")):
        supervisor.stop(name)  # the kernel sends its jobs SIGTERM
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
    """Whether it is this process or a descendant."""
    try:
        return process.pid == pid or any(parent.pid == pid for parent in process.parents())
    except psutil.NoSuchProcess:
        return True
