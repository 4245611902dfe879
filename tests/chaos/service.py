"""The service that faults are done to: a stack, an API process and receivers of webhooks, all of their own."""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import psutil
import pytest
from sqlalchemy.exc import SQLAlchemyError
from transformers.utils import logging

from jobs.engine.processes import VARIABLE, is_job_process
from jobs.settings import Settings
from jobs.stack.local import ensure_up
from jobs.stack.process_manager import MARK, Supervisor
from jobs.storage.run_ids import RunIds
from jobs.storage.tables import engine_for
from tests.conftest import free_port
from tests.e2e.api_process import ApiProcess
from tests.receiver import Receiver
from tests.stack_guard import stopping_stack
from tests.tiny_models import save_tiny_llama

MODEL = "tiny/llama"
FOREIGN = ("TUNEYARD_", "PREFECT_", "MLFLOW_")  # of the user's environment
MOODS = 2000  # answers of a moody receiver that are drawn before it is only friendly


class Version(NamedTuple):
    """A version of an adapter in the registry: the model's name and the version's tags."""

    name: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Service:
    """All of it, as long as it runs. `moody` answers 500 to every third request or so."""

    settings: Settings
    api: ApiProcess
    friendly: Receiver
    moody: Receiver

    @property
    def url(self) -> str:
        """Where the API is."""
        return str(self.api.client.base_url)

    @cached_property
    def prefect(self) -> httpx.Client:
        """A client of Prefect's API, as its UI is one."""
        return httpx.Client(base_url=str(self.settings.prefect_api_url), timeout=30)

    @property
    def supervisor(self) -> Supervisor:
        """Of the stack's parts."""
        return Supervisor(self.settings.home)

    def find_trainers(self) -> dict[str, psutil.Process]:
        """The process that trains, by job, of those jobs that have one."""
        ours = [(run_id, process) for run_id, process in find_job_processes() if self._owns(process)]
        trainers = {run_id: process for run_id, process in ours if "flows" in read_command(process)}
        ids = self.read_run_ids() if trainers else RunIds(None)
        return {str(ids.job_of(UUID(run_id))): process for run_id, process in trainers.items()}

    def find_own(self, module: str) -> list[psutil.Process]:
        """The processes of this service that run a module, which the API has started."""
        started = [process for process in psutil.process_iter() if module in read_command(process)]
        return [process for process in started if _is_at_home(process, self.settings.home)]

    def run_of(self, job_id: str) -> str:
        """The id of the job's run in Prefect, another one for a job whose first run was lost."""
        return str(self.read_run_ids().run_of(UUID(job_id)))

    def read_run_ids(self) -> RunIds:
        """Which runs stand for which jobs; as last known while the database is away."""
        with suppress(SQLAlchemyError):
            self._known_ids[0] = RunIds(engine_for(str(self.settings.database_url)))
        return self._known_ids[0]

    @cached_property
    def _known_ids(self) -> list[RunIds]:
        return [RunIds(None)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(MARK) == str(self.settings.home))
        except psutil.Error:
            return False

    def read_versions(self) -> list[Version]:
        """Every version of every adapter in MLflow's registry. Raises httpx.HTTPError."""
        return read_versions(str(self.settings.mlflow_tracking_uri))


def read_versions(tracking_uri: str, credentials: tuple[str, str] | None = None) -> list[Version]:
    """Every version of every adapter in the registry of this MLflow server. Raises httpx.HTTPError."""
    address = f"{tracking_uri}/api/2.0/mlflow/model-versions/search"
    versions: list[Version] = []
    token = ""
    while True:
        wanted = {"max_results": 100, "page_token": token}
        answer = httpx.get(address, params=wanted, auth=credentials, timeout=60)
        page = answer.raise_for_status().json()
        for version in page.get("model_versions", []):
            tags = {tag["key"]: tag["value"] for tag in version.get("tags", [])}
            versions.append(Version(version["name"], tags))
        token = page.get("next_page_token", "")
        if not token:
            return versions


@contextmanager
def running_service(folder: Path, workers: int, rng: random.Random, **more: Any) -> Iterator[Service]:
    """The service with its state in `folder`, and more settings if given; all of it is stopped at the end."""
    settings = Settings(
        home=folder / "state", prefect_port=free_port(), mlflow_port=free_port(), workers=workers,
        database_url=None, prefect_api_url=None, mlflow_tracking_uri=None,
        keep_planner=False, webhook_allow="127.0.0.0/8", **more,
    )  # fmt: skip
    logging.disable_progress_bar()
    save_tiny_llama(settings.model_root / MODEL)
    friendly, moody = Receiver(200), Receiver(*rng.choices([200, 500], [2, 1], k=MOODS), 200)
    given = {f"TUNEYARD_{name.upper()}": str(value) for name, value in more.items()}
    api = ApiProcess(_api_environment(settings) | given, folder / "api.log")
    with ExitStack() as opened:
        opened.callback(moody.close)
        opened.callback(friendly.close)
        opened.enter_context(stopping_stack(settings))
        opened.callback(api.close)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TUNEYARD_SERVING_CHECK_SECONDS", "0")  # each would load the training libraries
            patch.setenv("OMP_NUM_THREADS", "1")  # so small a model is the slower the more threads there are
            up = ensure_up(settings)
        service = Service(up, api.start(), friendly, moody)
        opened.enter_context(service.prefect)
        yield service


def _api_environment(settings: Settings) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return ours | {
        "TUNEYARD_HOME": str(settings.home),
        "TUNEYARD_WORKERS": str(settings.workers),
        "TUNEYARD_WEBHOOK_ALLOW": "127.0.0.0/8",
        "TUNEYARD_KEEP_PLANNER": "false",
        "TUNEYARD_SERVING_CHECK_SECONDS": "0",
    }


def find_job_processes() -> list[tuple[str, psutil.Process]]:
    """Run and process of every process of any job on this machine."""
    found = []
    for process in psutil.process_iter():
        if is_job_process(process):
            try:
                found.append((process.environ()[VARIABLE], process))
            except psutil.Error:  # gone
                continue
    return found


def read_command(process: psutil.Process) -> list[str]:
    """The words a process was started with; none when it has gone."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _is_at_home(process: psutil.Process, home: Path) -> bool:
    try:
        return bool(process.environ().get("TUNEYARD_HOME") == str(home))
    except psutil.Error:
        return False


def find_left_over(home: Path) -> list[str]:
    """Processes on this machine that have to do with this state folder, whoever started them."""
    found = []
    for process in psutil.process_iter():
        try:
            is_dead = process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE
            if not is_dead and _has_to_do_with(process, str(home)):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (psutil.Error, OSError):  # gone, or another user's
            continue
    return found


def _has_to_do_with(process: psutil.Process, home: str) -> bool:
    environment = process.environ()
    if home in (environment.get(MARK), environment.get("TUNEYARD_HOME")):
        return True
    # PostgreSQL's children write over their environment, but stay in the data folder.
    return process.cwd().startswith(home) or any(home in word for word in process.cmdline())
