"""A job whose servers go away for a while."""

import os
import signal

import pytest
from mlflow import MlflowClient

from jobs import stack as local_stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


@pytest.fixture
def mlflow_pid(stack):
    pid = next(part.pid for part in local_stack.status(stack) if part.name == "mlflow")
    yield pid
    os.kill(pid, signal.SIGCONT)


def test_training_goes_on_while_mlflow_stands_still_and_is_registered_once(api, model, stack, mlflow_pid, wait_for):
    body = {"model_name": model, "template": "chatml", "max_samples": 24, "batch_size": 4, "lora_name": "patient"}
    body |= {"gradient_accumulation_steps": 1, "max_steps": 300}
    job_id = api.post("/train", json=body).json()["job_id"]
    wait_for(job_id, lambda job: job["progress"] is not None)
    os.kill(mlflow_pid, signal.SIGSTOP)
    held = wait_for(job_id, lambda job: job["phase"] == "registering" or job["status"] != "running")
    assert (held["status"], held["progress"]["step"]) == ("running", 300)
    os.kill(mlflow_pid, signal.SIGCONT)
    assert wait_for(job_id)["status"] == "completed"

    client = MlflowClient(stack.mlflow_tracking_uri)
    (version,) = client.search_model_versions("name = 'patient'")
    losses = client.get_metric_history(version.run_id, "loss")
    assert [point.step for point in losses] == [*range(1, 301)]
    assert client.get_run(version.run_id).info.status == "FINISHED"
