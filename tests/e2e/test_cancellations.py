"""A job is cancelled in the end whatever became of its process and its worker."""

import time

import pytest
from prefect.client.schemas.objects import State, StateType

from jobs.watchdog.cancellations import GRACE_SECONDS
from tests.conftest import wait_until
from tests.e2e.line import NOBODY

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("paused")]

GONE = 2**22 - 1  # a pid that no process has


def test_a_job_whose_process_went_as_it_was_cancelled_does_not_stay_so(api, prefect):
    job_id = api.post("/train", json={"model_name": "nobody/gone"}).json()["job_id"]
    prefect.set_flow_run_state(job_id, State(type=StateType.PENDING), force=True)
    change = {"infrastructure_pid": str(GONE)}
    prefect.request("PATCH", "/flow_runs/{id}", path_params={"id": job_id}, json=change)

    began = time.monotonic()
    assert api.delete(f"/train/{job_id}").status_code == 200
    is_running = api.get("/queue").json()["is_training_running"]
    assert is_running or time.monotonic() - began > GRACE_SECONDS  # as far as anybody knows
    wait_until(lambda: api.get("/queue").json() == NOBODY, 60)
    assert api.get(f"/api/sft/jobs/{job_id}").json()["status"] == "stopped"
