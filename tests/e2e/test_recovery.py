"""Jobs whose processes or workers die, and whose checkpoints are asked meanwhile, as their clients see them."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID

import psutil
import pytest
from mlflow import MlflowClient
from sqlalchemy import update

from jobs.stack import local as local_stack
from jobs.storage.tables import JobAttempt, engine_for
from tests.conftest import command_line, wait_until
from tests.e2e.line import NOBODY
from tests.processes import find_processes

pytestmark = [pytest.mark.stack, pytest.mark.timeout(800)]

SMALL = {"template": "chatml", "batch_size": 4, "gradient_accumulation_steps": 1, "mixed_precision": "none"}


@pytest.fixture
def start(api, model, wait_for):
    """Starts a job of many small steps and returns its id once it trains."""

    def start(**fields):
        wait_until(lambda: api.get("/queue").json() == NOBODY, 120)
        body = SMALL | {"model_name": model, "dataset_version": "v1.1", "max_samples": 100, "save_steps": 20}
        job_id = api.post("/train", json=body | fields).json()["job_id"]
        wait_for(job_id, lambda job: (job["progress"] or {}).get("step", 0) > 20)
        return job_id

    return start


def find_trainer(job_id):
    """The process that trains: the keeper's child."""
    found = []

    def is_alone():
        """It may have a child for a moment, such as git, and what has just ended is nobody's."""
        running = [process for process in map(open_process, find_processes(job_id)) if process]
        trainers = [process for process in running if (words := command_line(process)) and "jobs.keeper" not in words]
        found[:] = [process.pid for process in trainers]
        return len(found) == 1

    wait_until(is_alone, 30)
    return found[0]


def open_process(pid):
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def checkpoints(api, job_id):
    return [kept["step"] for kept in api.get(f"/train/{job_id}/checkpoints").json()["checkpoints"]]


def ask(api, model):
    """A model's answer, and when it came."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}
    answer = api.post("/v1/chat/completions", json=body, headers={"Prefer": "wait=300"}, timeout=600)
    assert answer.is_success, answer.text
    return answer.json()["choices"][0]["message"]["content"], time.time()


def test_a_job_goes_on_whatever_becomes_of_its_process_and_its_worker_and_who_asks_it(
    api, start, wait_for, stack, receiver
):
    """Its first checkpoint is asked while it trains, and again after its end."""
    job_id = start(max_steps=800, save_total_limit=50, lora_name="survivor", webhook_url=receiver.url)
    first = f"{job_id}:ckpt-step-{checkpoints(api, job_id)[0]}"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, api, first)
        job = survive(api, job_id, wait_for, stack)
        text, answered_at = asked.result()
    assert (job["status"], job["progress"]["step"], job["attempt"]) == ("completed", 800, 4)
    versions = MlflowClient(stack.mlflow_tracking_uri).search_model_versions("name = 'survivor'")
    assert [version.tags["tuneyard.job_id"] for version in versions] == [job_id]
    assert receiver.wait(job_id)["status"] == "completed"
    assert [body["status"] for body in receiver.received if body["job_id"] == job_id] == ["completed"]
    assert answered_at < job["end_time"]
    assert ask(api, first)[0] == text


def survive(api, job_id, wait_for, stack):
    """The job at its end, after its process was told to stop, its worker was killed, and its process was killed."""
    statuses = set()

    def wait_for_attempt(number):
        """Until it trains, some steps beyond what it began with."""

        def look(job):
            statuses.add(job["status"])
            begun = [kept for kept in checkpoints(api, job_id) if kept % 20 == 0]
            return job["status"] != "running" or (job["attempt"] == number and job["progress"]["step"] > begun[-1] + 1)

        return wait_for(job_id, look)

    os.kill(find_trainer(job_id), signal.SIGTERM)
    wait_for_attempt(2)
    (worker,) = (part.pid for part in local_stack.status(stack) if part.name == "worker-0")
    os.kill(worker, signal.SIGKILL)
    wait_for_attempt(3)
    os.kill(find_trainer(job_id), signal.SIGKILL)

    job = wait_for(job_id, seconds=240)
    assert statuses <= {"running", "completed"}
    return job


def test_a_job_that_loses_its_last_attempt_has_failed_and_is_told_of(api, start, wait_for, stack, receiver):
    job_id = start(num_epochs=1000, webhook_url=receiver.url)
    with engine_for(stack.database_url).begin() as connection:
        connection.execute(update(JobAttempt).where(JobAttempt.job_id == UUID(job_id)).values(lost=2))
    for pid in find_processes(job_id):
        with suppress(ProcessLookupError):  # the one may end with the other
            os.kill(pid, signal.SIGKILL)

    job = wait_for(job_id)
    assert (job["status"], job["error_code"], job["attempt"]) == ("failed", "killed", 1)
    assert "it was the last of 3 attempts" in job["error"]
    told = receiver.wait(job_id, 60)
    assert (told["status"], told["error_code"], told["error"]) == ("failed", "killed", job["error"])
    assert api.get(f"/api/sft/jobs/{job_id}").json()["error_code"] == "killed"


def test_a_job_whose_process_does_not_react_is_cancelled_all_the_same(api, start):
    job_id = start(num_epochs=1000)
    os.kill(find_trainer(job_id), signal.SIGSTOP)
    assert api.delete(f"/train/{job_id}").json()["status"] == "cancelled"
    wait_until(lambda: find_processes(job_id) == [], 120)
    wait_until(lambda: api.get("/queue").json() == NOBODY, 120)
    assert api.get(f"/train/{job_id}").json()["status"] == "cancelled"
