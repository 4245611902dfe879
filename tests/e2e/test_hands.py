"""People's hands in Prefect's UI on a stack at work, as clients of the service see what comes of it."""

import pytest

from jobs.engine.processes import find_processes
from tests.conftest import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(800)]

SMALL = {"template": "chatml", "batch_size": 4, "gradient_accumulation_steps": 1, "mixed_precision": "none"}
LASTING = ("status", "start_time", "end_time", "result", "error", "error_code", "attempt", "config", "progress")


def set_state(prefect, job_id, kind, name):
    body = {"state": {"type": kind, "name": name, "message": f"{name} from the UI"}, "force": True}
    prefect.request("POST", "/flow_runs/{id}/set_state", path_params={"id": job_id}, json=body)


def look(api, job_id):
    job = api.get(f"/train/{job_id}").json()
    return {name: job[name] for name in LASTING}


def test_a_retry_of_an_ended_job_changes_nothing_and_trains_nothing(api, prefect, model, wait_for, receiver):
    body = SMALL | {"model_name": model, "dataset_version": "v1.1", "max_samples": 8, "max_steps": 2}
    job_id = api.post("/train", json=body | {"webhook_url": receiver.url}).json()["job_id"]
    wait_for(job_id)
    receiver.wait(job_id)
    before = look(api, job_id)
    assert before["result"]["metrics"]["tokens"] > 0
    wait_until(lambda: prefect.read_flow_run(job_id).state.name == "Completed", 60)

    set_state(prefect, job_id, "SCHEDULED", "AwaitingRetry")
    assert look(api, job_id) == before
    wait_until(lambda: prefect.read_flow_run(job_id).state.name == "Completed", 90)
    wait_until(lambda: find_processes(job_id) == [], 60)
    assert look(api, job_id) == before
    assert [told["status"] for told in receiver.received if told["job_id"] == job_id] == ["completed"]
    assert api.delete(f"/train/{job_id}").status_code == 400


def test_deployment_and_pool_are_made_again_and_no_job_that_waits_is_lost(api, prefect, model, wait_for, stack):
    body = SMALL | {"model_name": model, "dataset_version": "v1.1", "max_samples": 8, "lora_name": "found"}
    first = api.post("/train", json=body | {"num_epochs": 400}).json()["job_id"]
    wait_for(first, lambda job: (job["progress"] or {}).get("step", 0) > 1)
    waiting = [
        api.post("/train", json=body | {"max_steps": 1, "priority": priority}).json()["job_id"]
        for priority in ("normal", "low", "high")
    ]
    prefect.request("DELETE", "/work_pools/{name}", path_params={"name": stack.work_pool})
    deployment = prefect.read_deployment_by_name("finetune/sft")
    prefect.delete_deployment(deployment.id)

    assert [api.get(f"/train/{job_id}").json()["status"] for job_id in waiting] == ["queued"] * 3
    refused = api.post("/train", json=body)
    assert refused.is_success or "tuneyard up" in refused.json()["detail"]
    wait_until(lambda: api.get("/ready").is_success, 120)
    jobs = [wait_for(job_id, seconds=200) for job_id in (first, *waiting)]
    assert [job["status"] for job in jobs] == ["completed"] * 4
    low, high = (api.get(f"/train/{job_id}").json() for job_id in waiting[1:])
    assert (low["priority"], high["priority"]) == ("low", "high")
    assert high["start_time"] < low["start_time"]
    queues = sorted(prefect.read_work_queues(stack.work_pool), key=lambda queue: queue.priority)
    assert [queue.name for queue in queues] == ["high", "default", "low"]
    listed = [job["job_id"] for job in api.get("/train").json()]
    assert all(listed.count(job_id) == 1 for job_id in waiting)
    assert "rows used" in api.get(f"/train/{waiting[0]}/logs").text
