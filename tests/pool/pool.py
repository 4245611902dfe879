"""The pool that faults are done to: three hosts with a worker each, two with a watchdog, one with the API."""

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from transformers.utils import logging

from jobs.project import code_environment
from tasks.dataset_registry import build_registry
from tests.chaos.service import read_command
from tests.conftest import free_port
from tests.pool import small_model
from tests.pool.hosts import Host, Site
from tests.pool.servers import Servers, running_servers, wait_for
from tests.receiver import Receiver
from tests.tiny_models import save_tiny_llama

MODEL = "tiny/llama"
WORKERS = ("gpu-1", "gpu-2", "gpu-3")
WATCHDOGS = ("watchdog-1", "watchdog-2")
API = "api"
DRAIN_SECONDS = 120.0  # the grace of a drained machine, as a pod has it
PYTHON = [sys.executable, "-P", "-m"]


@dataclass
class Machine:
    """A host with what runs on it."""

    host: Host
    starts: int = 0
    main: subprocess.Popen[bytes] | None = None  # its worker, watchdog or API
    is_away: bool = False  # a fault is being done to it

    @property
    def name(self) -> str:
        """The host's."""
        return self.host.name


@dataclass
class Pool:
    """All of it, as long as it runs."""

    site: Site
    servers: Servers
    receiver: Receiver
    folder: Path
    api_port: int = field(default_factory=free_port)
    worker_command: list[str] = field(default_factory=list)
    worker_database_url: str = ""
    machines: dict[str, Machine] = field(default_factory=dict)

    @property
    def workers(self) -> list[Machine]:
        """Those that train."""
        return [self.machines[name] for name in WORKERS]

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://{self.machines[API].host.address}:{self.api_port}"

    def boot(self, name: str, has_model: bool = True) -> None:
        """Turn a machine on that has a fresh disk, and start on it what it is for."""
        if name not in self.machines:
            self.machines[name] = Machine(self.site.make_host(name))
        machine = self.machines[name]
        home = self.site.disks / name / "tuneyard"
        for folder in ("home", "tmp"):
            (self.site.disks / name / folder).mkdir(mode=0o700)
        home.mkdir(mode=0o700)
        if name in WORKERS:
            self._install(home, has_model)
        machine.host.start()
        machine.starts += 1
        machine.main = self._start_main(machine)
        machine.is_away = False

    def restart_main(self, machine: Machine) -> None:
        """Start what has ended on a machine that is there."""
        machine.main = self._start_main(machine)
        machine.is_away = False

    def lose(self, machine: Machine) -> None:
        """The machine and its disk are gone."""
        machine.is_away = True
        machine.host.kill()
        machine.main = None
        self.site.erase(machine.host)

    def drain(self, machine: Machine) -> None:
        """Its worker is told to stop, and once nothing of a job runs there, it is gone with its disk."""
        machine.is_away = True
        assert machine.main is not None
        machine.host.signal(machine.main, signal.SIGTERM)
        wait_for(lambda: not self._has_work(machine), f"{machine.name} is drained", DRAIN_SECONDS)
        self.lose(machine)

    def run(self, machine: Machine, command: Sequence[str]) -> str:
        """Run a command on a machine to its end; its output. Raises RuntimeError."""
        log = self.folder / "logs" / "command.log"
        log.unlink(missing_ok=True)
        process = machine.host.launch(command, self._environment(machine.host), log)
        code, text = process.wait(180), log.read_text(encoding="utf-8")
        if code:
            raise RuntimeError(f"{shlex.join(command)} on {machine.name}: {text}")
        return text

    def close(self) -> None:
        """Turn everything off."""
        for machine in self.machines.values():
            machine.host.kill()
            machine.main = None

    def _has_work(self, machine: Machine) -> bool:
        is_working = machine.main is not None and machine.main.poll() is None
        commands = (" ".join(read_command(process)) for process in machine.host.find_processes())
        return is_working or any("jobs.keeper" in command or "-m flows" in command for command in commands)

    def _install(self, home: Path, has_model: bool) -> None:
        shutil.copytree(self.folder / "image", home, symlinks=True, dirs_exist_ok=True)
        if not has_model:
            shutil.rmtree(home / "models")

    def _start_main(self, machine: Machine) -> subprocess.Popen[bytes]:
        if machine.name in WORKERS:
            command = self.worker_command
        elif machine.name in WATCHDOGS:
            command = [*PYTHON, "jobs.watchdog"]
        else:
            command = [*PYTHON, "uvicorn", "app.main:app", "--host", machine.host.address, "--port", str(self.api_port)]
        log = self.folder / "logs" / f"{machine.name}.log"
        return machine.host.launch(command, self._environment(machine.host), log)

    def _environment(self, host: Host) -> dict[str, str]:
        root = host.root
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = {
            "PATH": programs,
            "HOME": str(root / "home"),
            "TMPDIR": str(root / "tmp"),
            "TUNEYARD_HOME": str(root / "tuneyard"),
            "PREFECT_HOME": str(root / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",  # three make a worker offline: as long as a job may be silent
            "TUNEYARD_WEBHOOK_ALLOW": self.site.network,
            "TUNEYARD_KEEP_PLANNER": "false",
            "TUNEYARD_SERVING_CHECK_SECONDS": "0",
            "TUNEYARD_DATASET_REGISTRY": str(self._registry(host)),
            "OMP_NUM_THREADS": "1",  # so small a model is the slower the more threads there are
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
            "PYTHONUNBUFFERED": "1",
            **self.servers.client_environment(),
        }
        if host.name in WORKERS:
            environment["TUNEYARD_DATABASE_URL"] = self.worker_database_url
        return code_environment(environment)

    def _registry(self, host: Host) -> Path:
        """On the disk of each host, and at the path that is written in it."""
        root = host.root if host.can_be_cut else self.site.image_root
        return root / "tuneyard" / "registry"


@contextmanager
def running_pool(folder: Path, has_namespaces: bool) -> Iterator[Pool]:
    """A pool with its state and logs in the folder. All of it has ended afterwards."""
    for name in ("servers", "logs"):
        (folder / name).mkdir()
    site = Site(folder, has_namespaces)
    _make_image(site, folder)
    receiver = Receiver(200, host=site.address)
    try:
        with running_servers(folder / "servers", site.address) as servers:
            pool = Pool(site, servers, receiver, folder)
            try:
                _start(pool)
                yield pool
            finally:
                pool.close()
    finally:
        receiver.close()


def _start(pool: Pool) -> None:
    pool.boot(API)
    deploy = ["tuneyard", "deploy", "--limit", str(len(WORKERS)), "--json"]
    text = pool.run(pool.machines[API], deploy)
    pool.worker_command = shlex.split(json.loads(text[text.index("{") :])["worker"])
    pool.worker_database_url = pool.servers.database_url
    if importlib.util.find_spec("cli.trainer_role"):
        text = pool.run(pool.machines[API], ["tuneyard", "trainer-role", "--json"])
        pool.worker_database_url = json.loads(text[text.index("{") :])["url"]
    for name in (*WORKERS, *WATCHDOGS):
        pool.boot(name)
    with httpx.Client(base_url=pool.url, timeout=10) as api:
        wait_for(lambda: _is_ready(api), f"the API is ready; see {pool.folder / 'logs'}")


def _is_ready(api: httpx.Client) -> bool:
    try:
        return api.get("/ready").is_success
    except httpx.TransportError:
        return False


def _make_image(site: Site, folder: Path) -> None:
    """What is on the disk of every host with a worker: a model and the dataset registry."""
    home = site.image_root / "tuneyard"
    logging.disable_progress_bar()
    save_tiny_llama(home / "models" / MODEL)
    small_model.save_small_llama(home / "models" / small_model.NAME)
    build_registry(home)
    shutil.copytree(home, folder / "image", symlinks=True)
