"""Webhooks as clients see them: for a cancelled job, refused where they may not lead, listed, resent."""

import subprocess
import sys
import time

import httpx
import pytest
from standardwebhooks import Webhook

from tests.conftest import WEBHOOK_SECRETS, wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

SMALL = {"template": "chatml", "max_samples": 24, "batch_size": 4, "gradient_accumulation_steps": 1}


def test_a_webhook_that_asks_for_it_is_told_of_the_start_and_of_each_checkpoint(api, model, receiver, wait_for):
    around = {"webhook_url": receiver.url, "webhook_events": ["started", "checkpoint"]}
    body = SMALL | {"model_name": model, "save_steps": 2, "max_steps": 4, **around}
    job_id = api.post("/train", json=body).json()["job_id"]
    job = wait_for(job_id)
    assert (job["status"], job["config"]["webhook_events"]) == ("completed", ["started", "checkpoint"])

    def told():
        return [body for body in receiver.received if body["job_id"] == job_id]

    wait_until(lambda: {"completed"} <= {body["status"] for body in told()} and len(told()) >= 4, 60)
    events = [body for body in told() if "event" in body]
    assert {"job_id": job_id, "status": "running", "event": "started"} in events
    saved = {body["step"]: body["path"] for body in events if body["event"] == "checkpoint"}
    assert sorted(saved) == [2, 4]
    assert saved[4].endswith("/checkpoint-4")
    assert sorted(one["event"] for one in deliveries(api, job_id)) == ["checkpoint", "checkpoint", "ended", "started"]


def test_a_failed_job_has_its_code_in_both_dialects_and_in_the_webhook(api, receiver, wait_for):
    body = SMALL | {"model_name": "nobody/nothing", "webhook_url": receiver.url}
    job_id = api.post("/train", json=body).json()["job_id"]
    job = wait_for(job_id)
    assert (job["status"], job["error_code"]) == ("failed", "model_not_found")
    assert api.get(f"/api/sft/jobs/{job_id}").json()["error_code"] == "model_not_found"
    assert receiver.wait(job_id)["error_code"] == "model_not_found"


@pytest.fixture(scope="module")
def cancelled(paused, api, model, receiver):
    """A job that was cancelled while it waited, and what its client was told. No job starts after it."""
    body = SMALL | {"model_name": model, "webhook_url": receiver.url}
    job_id = api.post("/train", json=body).json()["job_id"]
    assert api.delete(f"/train/{job_id}").status_code == 200
    told = receiver.wait(job_id)
    wait_until(lambda: deliveries(api, job_id)[0]["state"] == "delivered", 30)
    return job_id, told


def deliveries(api, job_id):
    answer = api.get(f"/train/{job_id}/deliveries")
    assert answer.status_code == 200, answer.text
    return answer.json()["deliveries"]


def test_a_job_cancelled_in_the_queue_is_told_of_at_once(api, cancelled, model, receiver):
    job_id, told = cancelled
    assert told == {
        "job_id": job_id, "status": "cancelled", "tracking_url": None, "output_path": None, "model_name": None,
        "model_version": None, "metrics": None,
    }  # fmt: skip

    def measure():
        body = SMALL | {"model_name": model, "webhook_url": receiver.url}
        another = api.post("/train", json=body).json()["job_id"]
        api.delete(f"/train/{another}")
        began = time.monotonic()
        receiver.wait(another)
        return time.monotonic() - began

    assert any(measure() < 1 for _ in range(8))  # on a busy machine some take longer


def test_deliveries_are_listed_and_sent_again(api, cancelled, receiver):
    job_id = cancelled[0]
    (delivery,) = deliveries(api, job_id)
    assert api.get(f"/api/sft/jobs/{job_id}/deliveries").json() == {"deliveries": [delivery]}
    assert (delivery["status"], delivery["url"], delivery["next_attempt_at"]) == ("cancelled", receiver.url, None)
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [200]

    for prefix in ("/train", "/api/sft/jobs"):
        before = len(deliveries(api, job_id)[0]["attempts"])
        again = api.post(f"{prefix}/{job_id}/deliveries/{delivery['delivery_id']}/resend")
        assert (again.status_code, again.json()["delivery_id"]) == (200, delivery["delivery_id"])
        wait_until(lambda count=before: len(deliveries(api, job_id)[0]["attempts"]) > count, 30)
    sent = [(headers, body) for headers, body in receiver.requests if job_id.encode() in body]
    assert len(sent) == 3
    assert {headers["webhook-id"] for headers, _ in sent} == {delivery["webhook_id"]}
    assert Webhook(WEBHOOK_SECRETS[1]).verify(sent[2][1], sent[2][0])["job_id"] == job_id

    missing = api.post(f"/train/{job_id}/deliveries/nonsense/resend")
    assert (missing.status_code, missing.json()["code"]) == (404, "delivery_not_found")
    assert api.get("/train/nonsense/deliveries").status_code == 404


def test_the_command_line_lists_and_resends(api, cancelled, environment):
    job_id = cancelled[0]
    delivery_id = deliveries(api, job_id)[0]["delivery_id"]

    def run(*arguments):
        command = [sys.executable, "-m", "cli", "deliveries", job_id, "--url", str(api.base_url), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    first = run().splitlines()
    assert first[0].split()[:3] == [delivery_id, "cancelled", "delivered"]
    assert first[1].endswith("HTTP 200")
    assert run("--resend", delivery_id).split()[:3] == [delivery_id, "cancelled", "pending,"]


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.localdomain@10.1", "169.254.169.254", "[::1]", "2852039166"])
def test_a_webhook_that_leads_inside_is_refused_when_the_job_is_submitted(api, host):
    url = f"http://{host}/hook"
    config = {"base_model": "m", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
    train = api.post("/train", json={"webhook_url": url})
    sft = api.post("/api/sft/train", json={"config": config, "webhook_url": url})

    assert (train.status_code, sft.status_code) == (422, 400)
    assert train.json()["detail"] == sft.json()["detail"]
    remedy = "must have no user name" if "@" in host else "TUNEYARD_WEBHOOK_ALLOW="
    for word in ("webhook_url", remedy):
        assert word in train.json()["detail"]


def test_secrets_are_in_no_log_no_parameters_and_no_configuration(stack, cancelled):
    secrets = [secret.encode() for secret in WEBHOOK_SECRETS]
    files = [*(stack.home / "logs").iterdir(), *(stack.home / "run").glob("*.conf"), stack.home / "endpoints.json"]
    run = httpx.get(f"{stack.prefect_api_url}/flow_runs/{cancelled[0]}", timeout=30).content
    for content in [run, *(file.read_bytes() for file in files)]:
        assert not any(secret in content for secret in secrets)
    assert len(files) > 5
