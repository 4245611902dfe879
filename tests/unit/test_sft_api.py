"""The SFT API from Python: `sft_job_manager` and the routes it shares its views with, over a real stack."""

import json
import os
import subprocess
import sys
import time

import httpx
import pytest

from api import sft_routes as served
from app.api import sft_routes
from app.api.sft_job_manager import SFTJobManager, sft_job_manager
from app.sft import SFTCallback, SFTConfig
from jobs.settings import PROJECT_ROOT

pytestmark = pytest.mark.stack

NOBODY = "550e8400-e29b-41d4-a716-446655440000"
CONFIG = {"base_model": "nobody/nothing", "dataset_name": "handbook@v1.0", "dataset_format": "alpaca", "max_steps": 1}


@pytest.fixture(scope="module")
def manager(stack):
    """The manager most tests share."""
    with SFTJobManager(stack) as manager:
        yield manager


@pytest.fixture
def job_id(manager):
    """A job that has not been started; stopped afterwards if the test has not."""
    job_id = manager.create_job(SFTConfig(**CONFIG))
    yield job_id
    if manager.get_job_status(job_id)["status"] in ("pending", "running"):
        manager.stop_job(job_id)


def wait_for_end(manager, job_id):
    deadline = time.monotonic() + 150
    while (status := manager.get_job_status(job_id))["status"] not in ("completed", "failed", "stopped"):
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    return status


class Recorder(SFTCallback):
    """Remembers how training ended."""

    def __init__(self):
        self.ended = []

    def on_train_end(self, trainer, *args, **kwargs):
        self.ended.append((trainer.job_id, trainer.config.base_model))


def test_a_job_waits_until_it_is_started(manager, job_id):
    status = manager.get_job_status(job_id)

    assert (status["job_id"], status["status"], status["started_at"]) == (job_id, "pending", None)
    assert SFTConfig(**status["config"]) == SFTConfig(**CONFIG)
    assert job_id in [job["job_id"] for job in manager.list_jobs()]


def test_a_job_that_waits_is_known_to_every_manager(stack, job_id):
    with SFTJobManager(stack) as other:
        assert other.get_job_status(job_id)["status"] == "pending"


def test_a_job_that_has_not_been_started_can_be_stopped(manager, job_id):
    manager.stop_job(job_id)
    assert manager.get_job_status(job_id)["status"] == "stopped"
    manager.start_job(job_id)
    assert manager.get_job_status(job_id)["status"] == "stopped"


def test_a_started_job_runs_once_and_its_callbacks_hear_of_its_end(manager):
    recorder = Recorder()
    job_id = manager.create_job(SFTConfig(**CONFIG), callbacks=[recorder])
    manager.start_job(job_id)
    manager.start_job(job_id)

    status = wait_for_end(manager, job_id)
    assert (status["status"], status["result"]) == ("failed", None)
    assert "nobody/nothing" in status["error"]
    assert status["created_at"] < status["started_at"] < status["completed_at"]
    deadline = time.monotonic() + 60
    while not recorder.ended and time.monotonic() < deadline:
        time.sleep(0.1)
    assert recorder.ended == [(job_id, "nobody/nothing")]
    manager.start_job(job_id)
    assert manager.get_job_status(job_id) == status


@pytest.mark.parametrize("unknown", [NOBODY, "nonsense"])
def test_unknown_ids(manager, unknown):
    for method in (manager.start_job, manager.stop_job, manager.get_job_status):
        with pytest.raises(ValueError, match=f"^Job {unknown} not found$"):
            method(unknown)
    for method in (manager.get_config, manager.delete_config, manager.list_config_versions):
        with pytest.raises(ValueError, match=f"^Config {unknown} not found$"):
            method(unknown)


def test_a_configuration_is_kept_as_it_is_given_with_every_version(manager):
    partial = {"base_model": "gpt2", "use_lora": True}
    config_id = manager.save_config("mine", partial)
    found = manager.get_config(config_id)
    assert (found["name"], found["config"]) == ("mine", partial)
    assert found in manager.list_configs()

    manager.update_config(config_id, {"base_model": "gpt3"})
    assert manager.get_config(config_id)["name"] == "mine"
    versions = manager.list_config_versions(config_id)
    assert [version["config"] for version in versions] == [partial, {"base_model": "gpt3"}]

    manager.delete_config(config_id)
    with pytest.raises(ValueError, match=f"^Config {config_id} not found$"):
        manager.get_config(config_id)


def test_the_documented_name_is_ready_and_its_import_starts_nothing(tmp_path):
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-c", "import app.api.sft_job_manager, app.sft, sys; print('torch' in sys.modules)"],
        cwd=PROJECT_ROOT,
        env=os.environ | {"TUNEYARD_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert isinstance(sft_job_manager, SFTJobManager)
    assert done.stdout == "False\n"
    assert not home.exists()


def test_the_documented_routes_are_those_that_are_served():
    assert sft_routes.router is served.router


def test_the_routes_show_what_the_manager_shows(stack, manager, job_id):
    from starlette.testclient import TestClient

    from api.main import create_app

    app = create_app(stack)
    with TestClient(app) as client:
        assert client.get(f"/api/sft/jobs/{job_id}").json() == manager.get_job_status(job_id)
        assert client.post(f"/api/sft/jobs/{job_id}/stop").status_code == httpx.codes.OK
    app.state.access.close()
    assert manager.get_job_status(job_id)["status"] == "stopped"


CLOSED = """
import json, sys, threading
import psutil
from app.api.sft_job_manager import SFTJobManager
from app.sft import SFTCallback, SFTConfig

def look():
    followers = [thread for thread in threading.enumerate() if thread.name.startswith("callbacks-")]
    return [len(psutil.Process().net_connections("all")), len(followers)]

before = look()
with SFTJobManager() as manager:
    job_id = manager.create_job(SFTConfig(**json.loads(sys.argv[1])), callbacks=[SFTCallback()])
    during = look()
after = look()
status = manager.get_job_status(job_id)["status"]
manager.stop_job(job_id)
manager.close()
print(json.dumps([before, during, after, status, look()]))
"""


def test_a_closed_manager_has_no_connection_and_no_thread_left_and_opens_again(stack):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLOSED, json.dumps(CONFIG)],
        cwd=PROJECT_ROOT,
        env=os.environ | {"TUNEYARD_HOME": str(stack.home)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    before, during, after, status, at_the_end = json.loads(done.stdout)
    assert during[0] > before[0]
    assert during[1] == 1
    assert status == "pending"
    assert before == after == at_the_end
