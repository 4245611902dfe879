"""What people do in MLflow's pages while a job trains or registers: it is tracked and registered all the same."""

from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import RestException

from jobs.errors import RegistryRefused
from jobs.settings import Settings
from sft.config import SFTConfig
from tasks.dataset_version import DatasetVersion
from tasks.register import register_adapter
from tasks.tracking import EXPERIMENT, JOB_TAG, KIND_TAG, MlflowTracker
from tests.conftest import wait_until
from tests.mlflow_server import Proxy

CONFIG = SFTConfig(base_model="tiny", dataset_name="handbook", dataset_format="alpaca")
DATASET = DatasetVersion("handbook", "v1.0", "c0ffee", "0" * 32, Path("/data"), None, 48, "dvc", "/registry")


def open_tracker(client, job_id=None):
    return MlflowTracker(Settings(mlflow_tracking_uri=client.tracking_uri), job_id or str(uuid4()), "a run", CONFIG)


def delete_experiment(client, tracker):
    client.delete_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id)


def delete_run(client, tracker):
    client.delete_run(tracker.run_id)


def delete_both(client, tracker):
    delete_run(client, tracker)
    delete_experiment(client, tracker)


def rename_experiment(client, tracker):
    client.rename_experiment(client.get_experiment_by_name(EXPERIMENT).experiment_id, f"renamed {uuid4()}")


def kill_run(client, tracker):
    client.set_terminated(tracker.run_id, "KILLED")


def finish_run(client, tracker):
    client.set_terminated(tracker.run_id, "FINISHED")


HANDS = [delete_experiment, delete_run, delete_both, rename_experiment, kill_run, finish_run]


@pytest.mark.parametrize("meddle", HANDS)
def test_a_job_that_trains_meanwhile_is_tracked_to_its_end(client, meddle):
    tracker = open_tracker(client)
    tracker.log_metrics({"loss": 1.0}, 1)
    wait_until(lambda: client.get_metric_history(tracker.run_id, "loss"), 60)
    meddle(client, tracker)
    tracker.log_metrics({"loss": 0.5}, 2)
    tracker.log_dataset(DATASET)
    tracker.finish(succeeded=True)
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.info.lifecycle_stage) == ("FINISHED", "active")
    assert [point.step for point in client.get_metric_history(tracker.run_id, "loss")] == [1, 2]
    assert client.get_experiment(run.info.experiment_id).lifecycle_stage == "active"


@pytest.mark.parametrize("meddle", HANDS)
def test_the_next_job_and_the_next_attempt_are_tracked(client, meddle):
    first = open_tracker(client, job_id := str(uuid4()))
    first.finish(succeeded=False)
    meddle(client, first)
    for tracker in (open_tracker(client, job_id), open_tracker(client)):
        tracker.log_metrics({"loss": 0.5}, 2)
        tracker.finish(succeeded=True)
        run = client.get_run(tracker.run_id)
        assert (run.info.status, run.info.lifecycle_stage, run.data.metrics["loss"]) == ("FINISHED", "active", 0.5)


def test_an_experiment_that_is_deleted_while_a_run_is_opened_is_restored(client, monkeypatch):
    open_tracker(client).finish(True)
    create_run, deleted = MlflowClient.create_run, []

    def delete_first(self, experiment_id, *args, **values):
        if not deleted:
            deleted.append(experiment_id)
            self.delete_experiment(experiment_id)
        return create_run(self, experiment_id, *args, **values)

    monkeypatch.setattr(MlflowClient, "create_run", delete_first)
    tracker = open_tracker(client)
    tracker.finish(True)
    assert deleted == [tracker.run.info.experiment_id]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_the_experiment_opens_as_one_of_training_unless_somebody_has_chosen_another_kind(client):
    def kind():
        return client.get_experiment_by_name(EXPERIMENT).tags.get(KIND_TAG)

    open_tracker(client).finish(succeeded=True)
    assert kind() == "custom_model_development"
    experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.set_experiment_tag(experiment_id, KIND_TAG, "finetuning")
    open_tracker(client).finish(succeeded=True)
    assert kind() == "finetuning"
    client.rename_experiment(experiment_id, f"renamed {uuid4()}")
    client.create_experiment(EXPERIMENT)  # as earlier versions made it
    open_tracker(client).finish(succeeded=True)
    assert kind() == "custom_model_development"


@pytest.mark.parametrize("what", ["model before", "model after", "version after"])
def test_an_adapter_is_registered_though_somebody_deletes_there_meanwhile(client, adapter_dir, what):
    name, done = what.replace(" ", "-"), []

    def meddle(path, forward):
        if not path.endswith("model-versions/create") or done:
            return forward()
        done.append(what)
        if what == "model before":
            client.delete_registered_model(name)
            return forward()
        answer = forward()
        if what == "model after":
            client.delete_registered_model(name)
        else:
            client.delete_model_version(name, "1")
        return answer

    proxy = Proxy(client.tracking_uri, meddle)
    try:
        tracker = MlflowTracker(Settings(mlflow_tracking_uri=proxy.uri), str(uuid4()), "a run", CONFIG)
        adapter = register_adapter(tracker, str(uuid4()), name, adapter_dir, DATASET, {})
        tracker.finish(succeeded=True)
    finally:
        proxy.close()
    assert client.get_model_version(name, adapter.version).run_id == tracker.run_id


def test_a_job_that_registers_again_finds_its_version_under_the_models_new_name(client, adapter_dir):
    tracker, job_id = open_tracker(client), str(uuid4())
    made = register_adapter(tracker, job_id, "old-name", adapter_dir, DATASET, {})
    client.rename_registered_model("old-name", "new-name")
    again = register_adapter(tracker, job_id, "old-name", adapter_dir, DATASET, {})
    assert (again.name, again.version) == ("new-name", made.version)
    tracker.finish(succeeded=True)


def test_tags_and_aliases_that_are_edited_do_no_harm(client, adapter_dir):
    tracker, name = open_tracker(client), "edited"
    first = register_adapter(tracker, str(uuid4()), name, adapter_dir, DATASET, {})
    client.set_registered_model_alias(name, "production", first.version)
    client.delete_model_version_tag(name, first.version, JOB_TAG)
    client.delete_tag(tracker.run_id, JOB_TAG)
    second = register_adapter(tracker, str(uuid4()), name, adapter_dir, DATASET, {})
    tracker.finish(succeeded=True)
    assert [first.version, second.version] == ["1", "2"]


def test_what_mlflow_will_not_have_at_all_fails_with_a_code_and_a_remedy(client):
    def meddle(path, forward):
        if path.endswith("experiments/restore"):
            return httpx.Response(403, json={"error_code": "PERMISSION_DENIED", "message": "not yours"})
        return forward()

    open_tracker(client).finish(succeeded=True)
    delete_experiment(client, None)
    proxy = Proxy(client.tracking_uri, meddle)
    try:
        with pytest.raises(RegistryRefused, match="not yours; restore what was deleted") as caught:
            MlflowTracker(Settings(mlflow_tracking_uri=proxy.uri), str(uuid4()), "a run", CONFIG)
    finally:
        proxy.close()
        open_tracker(client).finish(succeeded=True)
    assert isinstance(caught.value.__cause__, RestException)
    assert caught.value.code == "registry_refused"
