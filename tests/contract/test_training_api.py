"""docs/contract/training-api.md: every command run as it is written there, its base URL and ids aside."""

import json
import re
import subprocess
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tests.contract.documents import find_block, find_json, read_blocks
from tests.receiver import Receiver
from tuneyard_client import Tuneyard

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

DOCUMENT = "training-api.md"
BASE_URL = "http://localhost:23478"
WEBHOOK = "https://example.com/webhook"
CURL_SETTINGS = 'silent\nshow-error\nwrite-out = "\\n%{http_code}"\n'
HEADINGS = {
    "start": "Start API service locally",  # run by the fixture `base_url`
    "info": "Get API Information",
    "basic": "Start a new training job (basic)",
    "all": "Start a training job with all parameters",
    "reject": "Start a training job with reject strategy",
    "status": "Get status of a specific job",
    "list": "Get all training jobs",
    "cancel": "Cancel a queued job",
    "queue": "Get queue status",
}
Curl = Callable[..., tuple[int, Any]]


@pytest.fixture
def receiver():
    """Stands for the documented webhook, which is somebody else's."""
    receiver = Receiver(200)
    yield receiver
    receiver.close()


@pytest.fixture
def curl(client, base_url, environment, receiver, tmp_path) -> Curl:
    """Runs the command under a heading, its id replaced if one is given; the status and the JSON of the answer."""
    (tmp_path / ".curlrc").write_text(CURL_SETTINGS)

    def run(heading: str, job_id: str | None = None) -> tuple[int, Any]:
        command = find_block(DOCUMENT, "bash", HEADINGS[heading])
        assert BASE_URL in command
        command = command.replace(BASE_URL, base_url).replace(WEBHOOK, receiver.url)
        if job_id is not None:
            command, replaced = re.subn(r"(?<=/train/)[0-9a-f-]{36}", job_id, command)
            assert replaced == 1
        done = subprocess.run(
            ["bash", "-c", command],
            env=environment | {"CURL_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)

    return run


def test_every_command_of_the_document_is_run_here():
    assert {block.heading for block in read_blocks(DOCUMENT) if block.language == "bash"} == set(HEADINGS.values())


def test_api_information(curl):
    status, body = curl("info")
    assert (status, body["name"]) == (200, "Tuneyard")
    assert {"name", "version", "description", "endpoints"} <= set(body)


def test_a_basic_job_is_started_and_answered_as_documented(curl):
    status, body = curl("basic")
    documented = find_json(DOCUMENT, "Training job creation response")

    assert status == 200
    assert body.pop("warnings")[0]["code"] == "model_not_found"  # beside what is documented: it is not on this machine
    assert body | {"job_id": documented["job_id"]} == documented
    assert str(uuid.UUID(body["job_id"])) == body["job_id"]


def test_the_status_shows_the_configuration_as_documented(curl):
    _, started = curl("all")
    status, job = curl("status", started["job_id"])
    documented = find_json(DOCUMENT, "Job status response")

    assert status == 200
    assert set(documented) <= set(job)
    assert (job["job_id"], job["status"]) == (started["job_id"], documented["status"])
    assert {key: job["config"].get(key) for key in documented["config"]} == documented["config"]


def test_logging_backend_is_shown_as_tracking_backend(curl):
    _, started = curl("basic")
    config = curl("status", started["job_id"])[1]["config"]
    assert (config["tracking_backend"], config["lora_name"]) == ("mlflow", "initial-sft")
    assert "logging_backend" not in config


def test_a_job_that_has_run_has_a_start_time_in_epoch_seconds(client, base_url, workers):
    workers.resume()
    try:
        with Tuneyard(base_url) as tuneyard:
            job_id = tuneyard.train(model_name="nobody/nothing", strict=False).job_id
            accepted_at = tuneyard.job(job_id).start_time
            tuneyard.wait(job_id, timeout_seconds=150)
    finally:
        workers.pause()
    job = client.get(f"/train/{job_id}").json()
    documented = find_json(DOCUMENT, "Job status response")["start_time"]

    assert job["status"] == "failed"
    assert type(job["start_time"]) is type(documented)
    assert documented < accepted_at <= job["start_time"] < job["end_time"]


def test_every_job_has_a_start_time_from_its_acceptance_on(curl, client):
    before = time.time()
    jobs = [curl("basic")[1] for _ in range(3)]
    after = time.time()
    assert [job["status"] for job in jobs] == ["started", "queued", "queued"]

    ids = [job["job_id"] for job in jobs]
    times = [curl("status", job_id)[1]["start_time"] for job_id in ids]
    assert before - 1 < times[0] < times[1] < times[2] < after + 1
    listed = {job["job_id"]: job["start_time"] for job in curl("list")[1]}
    assert [listed[job_id] for job_id in ids] == times
    curl("cancel", ids[1])
    cancelled = curl("status", ids[1])[1]
    assert times[1] == cancelled["start_time"] <= cancelled["end_time"]
    waiting = client.get(f"/api/sft/jobs/{ids[2]}").json()
    assert (waiting["status"], waiting["started_at"]) == ("pending", None)
    assert datetime.fromisoformat(waiting["created_at"]).timestamp() == times[2]


def test_reject_takes_a_job_on_an_idle_service_and_no_other(curl):
    assert curl("reject")[0] == 200
    status, body = curl("reject")
    assert (status, body["detail"]) == (409, "A training job is already running. Please try again later.")


def test_all_jobs_are_listed(curl):
    made = [curl("basic")[1]["job_id"] for _ in range(2)]
    status, jobs = curl("list")
    assert (status, type(jobs)) == (200, list)
    # The newest first; other tests of this stack may have left a run whose time has not come.
    assert [job["job_id"] for job in jobs if job["job_id"] in made] == made[::-1]
    assert set(find_json(DOCUMENT, "Job status response")) <= set(jobs[0])


def test_a_queued_job_is_cancelled_and_the_next_one_moves_up(curl):
    _, first = curl("basic")
    waiting = [curl("basic")[1] for _ in range(3)]
    messages = [f"Training job added to queue at position {position}" for position in (1, 2, 3)]
    assert [(job["status"], job["message"]) for job in waiting] == [("queued", message) for message in messages]
    ids = [job["job_id"] for job in waiting]
    assert curl("queue") == (200, {"is_training_running": True, "queue_length": 3, "queued_jobs": ids})

    status, body = curl("cancel", ids[0])
    assert (status, body["status"]) == (200, "cancelled")
    assert set(body) >= {"status", "message"}
    assert curl("status", ids[0])[1]["status"] == "cancelled"
    assert curl("cancel", ids[0])[0] == 400
    assert [curl("status", job_id)[1]["queue_position"] for job_id in ids[1:]] == [1, 2]
    assert curl("queue")[1]["queued_jobs"] == ids[1:]
    assert curl("cancel", first["job_id"])[0] == 200


def test_the_documents_own_ids_are_unknown_here(curl):
    assert curl("status")[0] == 404
    assert curl("cancel")[0] == 404
