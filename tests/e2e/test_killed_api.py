"""Nothing of a job lives only in the API process: killed and started again, it gives every answer that it gave."""

import json

import pytest

from app.api.sft_job_manager import SFTJobManager
from app.sft import SFTConfig

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

LONG = {"template": "chatml", "batch_size": 4, "gradient_accumulation_steps": 1, "num_epochs": 100_000}
SFT = {"base_model": "nobody/killed", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
MOVING = ("progress", "phase", "tracking_url", "output_path")  # of a job that runs


@pytest.fixture(scope="module")
def server(make_api):
    return make_api().start()


@pytest.fixture(scope="module")
def jobs(server, api, model, tiny_job, stack, wait_for):
    """A job in every state, by its state; the running one is stopped at the end."""
    client = server.client
    failed = client.post("/train", json={"model_name": "nobody/killed"}).json()["job_id"]
    wait_for(failed)
    running = client.post("/train", json=LONG | {"model_name": model}).json()["job_id"]
    wait_for(running, lambda job: job["progress"] is not None)
    queued, cancelled = (
        client.post("/api/sft/train", json={"config": SFT, "metadata": {"n": n}}).json()["job_id"] for n in "12"
    )
    client.delete(f"/train/{cancelled}")
    with SFTJobManager(stack) as manager:
        created = manager.create_job(SFTConfig(**SFT))
    ids = {"failed": failed, "running": running, "queued": queued, "cancelled": cancelled, "created": created}
    yield ids | {"completed": tiny_job.job.job_id}
    for job_id in (created, queued, running):
        api.post(f"/api/sft/jobs/{job_id}/stop")


@pytest.fixture(scope="module")
def config_id(server):
    """A saved configuration with a history."""
    saved = server.client.post("/api/sft/configs", json={"name": "killed", "config": SFT}).json()
    server.client.patch(f"/api/sft/configs/{saved['config_id']}", json={"config": {"lora_r": 4}})
    return saved["config_id"]


def read_everything(client, jobs, config_id):
    """Every answer about these jobs, by path; what moves while a job runs is left out."""
    paths = ["/queue", "/api/sft/configs", f"/api/sft/configs/{config_id}", f"/api/sft/configs/{config_id}/versions"]
    paths += ["/train", "/train?status=queued", "/train?limit=3", "/train?metadata=n:1", "/api/sft/jobs"]
    paths += ["/api/sft/jobs?status=stopped", "/api/sft/jobs?adapter=tiny"]
    for state, job_id in jobs.items():
        for path in (f"/train/{job_id}", f"/api/sft/jobs/{job_id}"):
            below = ["/checkpoints", "/logs", "/metrics", "/metrics?format=csv"] if state != "running" else []
            below += ["/events"] if state in ("completed", "failed", "cancelled") else []
            paths += [path, *(path + part for part in below)]
    answers = {path: client.get(path) for path in paths}
    return {
        path: without_moving(answer.json()) if "json" in answer.headers["content-type"] else answer.text
        for path, answer in answers.items()
    }


def without_moving(value):
    """JSON without the keys that change while a job runs, where it does."""
    if isinstance(value, list):
        return [without_moving(item) for item in value]
    if isinstance(value, dict):
        left_out = MOVING if value.get("status") == "running" else ()
        return {key: without_moving(item) for key, item in value.items() if key not in left_out}
    return value


def test_a_server_that_was_killed_answers_as_before(server, jobs, config_id):
    body, headers = {"config": SFT}, {"Idempotency-Key": "before the kill"}
    posted = server.client.post("/api/sft/train", json=body, headers=headers)
    before = read_everything(server.client, jobs, config_id)
    words = {state: before[f"/train/{job_id}"]["status"] for state, job_id in jobs.items()}
    assert words == {state: state for state in jobs}
    assert before["/queue"]["queued_jobs"] == [jobs["queued"], posted.json()["job_id"]]

    server.kill()
    server.start()

    after = read_everything(server.client, jobs, config_id)
    assert list(after) == list(before)
    for path, answer in before.items():
        assert after[path] == answer, path
    again = server.client.post("/api/sft/train", json=body, headers=headers)
    assert (again.status_code, again.json()) == (200, posted.json())
    assert server.client.delete(f"/train/{posted.json()['job_id']}").status_code == 200


def test_the_job_that_ran_meanwhile_goes_on_and_can_be_followed(server, jobs):
    path = f"/train/{jobs['running']}"
    step = server.client.get(path).json()["progress"]["step"]
    with server.client.stream("GET", f"{path}/events") as stream:
        told = (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: "))
        assert next(event["step"] for event in told if event.get("step", 0) > step) > step
