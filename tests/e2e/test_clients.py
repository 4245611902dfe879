"""Both clients against the service itself."""

import functools
from pathlib import Path

import pytest

from sft.config import SFTConfig
from tests.client.calling import make_call
from tests.conftest import wait_until
from tuneyard_client import errors

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

NOBODY = "550e8400-e29b-41d4-a716-446655440000"
SFT = {"base_model": "nobody/client", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}


@pytest.fixture(params=["sync", "async"])
def call(request, api):
    """`call("job", id)`: a method of either client of the service."""
    return functools.partial(make_call(request.param, timeout_seconds=60), str(api.base_url))


def test_a_job_was_made_and_followed_to_its_end(tiny_job):
    job, changes, events = tiny_job

    assert (job.status, job.has_ended, job.metadata) == ("completed", True, {"made.by": "asyncio"})
    assert changes[-1] == job
    assert {change.status for change in changes[:-1]} - {"queued"} == {"running"}
    assert [event.data["step"] for event in events if event.event == "checkpoint"] == [1, 2]
    assert (events[0].data["phase"], events[-1].event, events[-1].data["status"]) == ("starting", "end", "completed")


def test_whatever_a_job_has_can_be_read(call, tiny_job, tmp_path):
    job_id = tiny_job.job.job_id

    assert call("job", job_id) == call("wait", job_id) == tiny_job.job
    assert [job.job_id for job in call("jobs", adapter="tiny", metadata={"made.by": "asyncio"})] == [job_id]
    assert call("jobs", adapter="tiny", status="failed") == []
    assert call("events", job_id) == tiny_job.events
    assert call("events", job_id, tiny_job.events[4].id) == tiny_job.events[5:]
    assert call("events", job_id, "end") == []
    assert [step for step, _ in call("metrics", job_id).series["loss"]] == [1, 2]
    checkpoints = call("checkpoints", job_id)
    assert [(one.step, one.complete) for one in checkpoints] == [(1, True), (2, True)]
    wait_until(lambda: "Finished in state" in call("logs", job_id)[-1].message, 30)  # Prefect sends the last lines late
    lines = call("logs", job_id)
    assert any("rows used" in line.message for line in lines)
    assert call("logs", job_id, tail=2) == lines[-2:]
    folder = call("download_adapter", job_id, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {path.name for path in Path(tiny_job.job.output_path).iterdir()}


def test_a_saved_configuration_and_a_job_from_it_that_is_cancelled(call, model):
    saved = call("configs.save", "live", SFT)
    assert saved in call("configs.list")
    assert call("configs.update", saved.config_id, "live 2", SFTConfig(**SFT, lora_r=4)).version == 2
    assert call("configs.get", saved.config_id).config["lora_r"] == 4
    assert [one.name for one in call("configs.versions", saved.config_id)] == ["live", "live 2"]

    # One that does not end by itself: it is still there when it is cancelled.
    lasting = {"base_model": model, "template_name": "chatml", "max_steps": 1_000_000}
    made = call("sft", lasting, config_id=saved.config_id, metadata={"from": "config"}, priority="high", strict=False)
    job = call("job", made.job_id)
    assert (job.config["lora_r"], job.config["max_steps"], job.metadata) == (4, 1_000_000, {"from": "config"})
    assert call("queue").is_training_running
    with pytest.raises(errors.Conflict) as busy:
        call("train", model_name="nobody/client", strategy="reject", strict=False)
    assert (busy.value.status, busy.value.code) == (409, "training_busy")
    assert call("cancel", made.job_id).status == "cancelled"
    assert call("wait", made.job_id, timeout_seconds=90).status == "cancelled"

    call("configs.delete", saved.config_id)
    with pytest.raises(errors.NotFound) as gone:
        call("configs.get", saved.config_id)
    assert gone.value.request_id


def test_errors_are_told_apart(call):
    with pytest.raises(errors.NotFound, match=f"Job {NOBODY} not found"):
        call("job", NOBODY)
    with pytest.raises(errors.InvalidRequest, match="lora_r") as refused:
        call("train", model_name="nobody/client", lora_r=0)
    assert refused.value.status == 422
    with pytest.raises(errors.NotFound, match="model_name 'nobody/client' is neither in the model root") as refused:
        call("train", model_name="nobody/client")
    assert refused.value.code == "model_not_found"
    with pytest.raises(errors.InvalidRequest, match="lora_r") as refused:
        call("sft", SFT | {"lora_r": 0})
    assert refused.value.status == 400
