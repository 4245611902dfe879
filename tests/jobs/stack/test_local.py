"""The local stack as a user meets it: it starts itself, is shared, survives kills, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Cancelled, Paused

from jobs.settings import PROJECT_ROOT, Settings
from jobs.stack import local as stack
from jobs.stack.process_manager import Supervisor, stack_processes
from sft.errors import StackError
from tests.conftest import is_gone, stack_settings, wait_until
from tests.receiver import Receiver
from tests.stack_guard import stopping_stack

START = """
import json
from jobs.settings import Settings
from jobs.stack.local import ensure_up
settings = ensure_up(Settings())
print(json.dumps([settings.database_url, settings.prefect_api_url, settings.mlflow_tracking_uri]))
"""
FLOW = """
import time
from prefect import flow

@flow
def sleeper() -> None:
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def answers_of_five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, list[list[str]]]]:
    """A stack that five processes asked for at once, in a state folder that did not exist; what each was told."""
    settings = stack_settings(tmp_path_factory.mktemp("five") / "home")
    environment = os.environ | {
        "TUNEYARD_HOME": str(settings.home),
        "TUNEYARD_PREFECT_PORT": str(settings.prefect_port),
        "TUNEYARD_MLFLOW_PORT": str(settings.mlflow_port),
    }
    command = [sys.executable, "-c", START]
    with stopping_stack(settings):
        starters = [
            subprocess.Popen(command, env=environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
            for _ in range(5)
        ]
        yield settings, [json.loads(starter.communicate(timeout=250)[0]) for starter in starters]
    assert stack_processes(settings.home) == []


@pytest.fixture
def own_stack(answers_of_five: tuple[Settings, list[list[str]]]) -> Settings:
    """A stack that a test may do violence to; up at the start of each."""
    return stack.ensure_up(answers_of_five[0])


@pytest.fixture
def running_job(own_stack: Settings, tmp_path: Path) -> str:
    """The id of a flow run of the stack's work pool that is running and will not end by itself."""
    (tmp_path / "sleeper.py").write_text(textwrap.dedent(FLOW))
    with httpx.Client(base_url=str(own_stack.prefect_api_url), timeout=30) as client:
        flow = client.post("/flows/", json={"name": "sleeper"}).raise_for_status().json()["id"]
        deployment = client.post(
            "/deployments/",
            json={
                "name": "sleeper",
                "flow_id": flow,
                "entrypoint": "sleeper.py:sleeper",
                "path": str(tmp_path),
                "work_pool_name": "gpu",
            },
        )
        made = client.post(f"/deployments/{deployment.raise_for_status().json()['id']}/create_flow_run", json={})
        job = str(made.raise_for_status().json()["id"])
    wait_until(lambda: read_run(own_stack, job)["state_name"] == "Running", 120)
    return job


def read_run(settings: Settings, job: str) -> dict[str, object]:
    answer = httpx.get(f"{settings.prefect_api_url}/flow_runs/{job}", timeout=30).raise_for_status()
    run: dict[str, object] = answer.json()
    return run


def pids(settings: Settings) -> dict[str, int | None]:
    return {part.name: part.pid for part in stack.status(settings)}


@pytest.mark.stack
def test_five_processes_at_once_share_one_stack(answers_of_five: tuple[Settings, list[list[str]]]) -> None:
    settings, answers = answers_of_five
    assert answers == [answers[0]] * 5
    assert answers[0][1] == f"http://127.0.0.1:{settings.prefect_port}/api"
    daemons = [p for p in stack_processes(settings.home) if "supervisor.supervisord" in p.cmdline()]
    assert len(daemons) == 1
    assert {part.name: part.state for part in stack.status(settings)}.keys() == {
        "postgres", "prefect", "mlflow", "worker-0", "watchdog"
    }  # fmt: skip


@pytest.mark.stack
def test_a_stack_that_is_up_is_used_as_it_is_at_once(own_stack: Settings) -> None:
    before = pids(own_stack)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        again = stack.ensure_up(own_stack.model_copy(update={"database_url": None}))
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1
    assert again.database_url == own_stack.database_url
    assert pids(own_stack) == before


@pytest.mark.stack
def test_both_pages_open_by_either_name_of_this_machine(own_stack: Settings) -> None:
    for host in ("127.0.0.1", "localhost"):
        for port in (own_stack.prefect_port, own_stack.mlflow_port):
            answer = httpx.get(f"http://{host}:{port}/", follow_redirects=True, timeout=30)
            assert (answer.status_code, answer.headers["content-type"][:9]) == (200, "text/html")


@pytest.mark.stack
def test_the_deployments_of_prefect_yaml_are_there_with_a_form_and_a_schedule(own_stack: Settings) -> None:
    listed = httpx.post(f"{own_stack.prefect_api_url}/deployments/filter", json={}, timeout=30).json()
    by_name = {entry["name"]: entry for entry in listed}
    assert {"config", "adapter_name", "webhook_url"} <= by_name["sft"]["parameter_openapi_schema"]["properties"].keys()
    (nightly,) = by_name["retrain"]["schedules"]
    assert (nightly["schedule"]["cron"], nightly["active"]) == ("0 2 * * *", False)
    assert nightly["parameters"] == {"adapter_name": "handbook"}
    for name in ("sft", "retrain"):  # with the interpreter of this stack, whatever `python` is in a worker's PATH
        assert by_name[name]["job_variables"]["command"].startswith(f"{sys.executable} -m ")

    def has_scheduled_run() -> bool:
        wanted = {"deployments": {"name": {"any_": ["retrain"]}}}
        runs = httpx.post(f"{own_stack.prefect_api_url}/flow_runs/filter", json=wanted, timeout=30).json()
        return any(run["auto_scheduled"] and run["state_name"] == "Scheduled" for run in runs)

    schedule = f"{own_stack.prefect_api_url}/deployments/{by_name['retrain']['id']}/schedules/{nightly['id']}"
    httpx.patch(schedule, json={"active": True}, timeout=30).raise_for_status()  # as a click in its page
    wait_until(has_scheduled_run, 180)  # Prefect looks at changed schedules once a minute


@pytest.mark.stack
def test_a_killed_part_comes_back(own_stack: Settings) -> None:
    killed = pids(own_stack)["mlflow"]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: pids(own_stack)["mlflow"] not in (killed, None), 60)
    stack.ensure_up(own_stack.model_copy(update={"mlflow_tracking_uri": None}))
    assert httpx.get(f"{own_stack.mlflow_tracking_uri}/health", timeout=30).status_code == 200


@pytest.mark.stack
@pytest.mark.timeout(600)
def test_a_job_goes_on_after_its_stack_was_killed_and_after_it_was_stopped(
    own_stack: Settings, running_job: str, answers_of_five: tuple[Settings, list[list[str]]]
) -> None:
    settings = answers_of_five[0]
    orphans = stack_processes(settings.home)
    daemon = Supervisor(settings.home).pid()
    assert daemon is not None
    os.kill(daemon, signal.SIGKILL)
    assert stack.ensure_up(settings) == own_stack
    wait_until(lambda: all(map(is_gone, orphans)), 30)
    wait_until(lambda: read_run(own_stack, running_job)["state_name"] == "Running", 120)
    assert read_run(own_stack, running_job)["run_count"] == 2

    receiver = Receiver(200)
    untold = cancel_without_a_word(own_stack, receiver.url)
    assert stack.down(settings)
    assert stack_processes(settings.home) == []
    assert not stack.down(settings)
    assert {part.state for part in stack.status(settings)} == {"STOPPED"}

    stack.ensure_up(settings)
    wait_until(lambda: read_run(own_stack, running_job)["state_name"] == "Running", 120)
    assert read_run(own_stack, running_job)["run_count"] == 3
    assert receiver.wait(untold)["status"] == "cancelled"
    receiver.close()


def cancel_without_a_word(settings: Settings, webhook_url: str) -> str:
    """Make a job end with neither the watchdog nor a hook of the job there to know of it; its id."""
    Supervisor(settings.home).stop("watchdog")
    config = {"base_model": "nobody/nothing", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
    with SyncPrefectClient(str(settings.prefect_api_url)) as client:
        deployment = client.read_deployment_by_name("finetune/sft")
        parameters = {"config": config, "webhook_url": webhook_url}
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters, state=Paused())
        client.set_flow_run_state(run.id, Cancelled(), force=True)
    return str(run.id)


def test_a_taken_port_names_part_port_holder_and_setting(tmp_path: Path) -> None:
    settings = stack_settings(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.prefect_port))
        other.listen()
        with pytest.raises(StackError) as caught:
            stack.ensure_up(settings)
    holder = f"pid {os.getpid()} ({Path(f'/proc/{os.getpid()}/comm').read_text().strip()})"
    assert str(caught.value) == (
        f"Prefect needs port {settings.prefect_port}, which is taken by {holder}; "
        "stop that process or set TUNEYARD_PREFECT_PORT to a free port"
    )
    assert stack_processes(tmp_path) == []


def test_external_servers_are_taken_as_they_are_and_nothing_starts(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path / "home",
        database_url="postgresql+psycopg2://db/tuneyard",
        prefect_api_url="http://prefect/api",
        mlflow_tracking_uri="http://mlflow",
    )
    assert stack.ensure_up(settings) is settings
    assert not settings.home.exists()
    assert {part.name: part.state for part in stack.status(settings)} == {
        "postgres": "EXTERNAL", "prefect": "EXTERNAL", "mlflow": "EXTERNAL"
    }  # fmt: skip


def test_a_part_that_can_not_start_shows_the_end_of_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir(mode=0o777)
    with pytest.raises(StackError, match=r"postgres did not start \(BACKOFF\); the end of .*/logs/postgres.log:\n.+"):
        stack.ensure_up(stack_settings(tmp_path))
    assert stack_processes(tmp_path) == []
