"""A job whose servers go away for a while."""

import os
import signal

import pytest
from mlflow import MlflowClient

from jobs.stack import local as local_stack
from tests.conftest import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


def test_training_goes_on_while_mlflow_is_away_and_is_registered_once(api, model, stack, wait_for):
    body = {"model_name": model, "template": "chatml", "max_samples": 24, "batch_size": 4, "lora_name": "patient"}
    body |= {"gradient_accumulation_steps": 1, "max_steps": 150}
    job_id = api.post("/train", json=body).json()["job_id"]
    wait_for(job_id, lambda job: job["progress"] is not None)
    mlflow = next(part.pid for part in local_stack.status(stack) if part.name == "mlflow")
    os.kill(mlflow, signal.SIGKILL)
    job = wait_for(job_id, seconds=240)
    assert (job["status"], job["error"]) == ("completed", None)

    client = MlflowClient(stack.mlflow_tracking_uri)
    (version,) = client.search_model_versions("name = 'patient'")
    losses = client.get_metric_history(version.run_id, "loss")
    assert [point.step for point in losses] == [*range(1, 151)]
    assert client.get_run(version.run_id).info.status == "FINISHED"
    wait_until(lambda: "MLflow is down; metrics are buffered" in api.get(f"/train/{job_id}/logs").text, 30)
