"""Jobs and an MLflow server that goes away: metrics are kept, registration waits, nothing is registered twice."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import RestException

from jobs.errors import RegistryUnavailable
from jobs.settings import Settings
from sft.config import SFTConfig
from tasks.dataset_version import DatasetVersion
from tasks.outage import MOST_RACES, MetricSender, keep_trying
from tasks.register import register_adapter
from tasks.tracking import MlflowTracker
from tests.conftest import free_port, wait_until
from tests.mlflow_server import MlflowServer, Proxy

CONFIG = SFTConfig(base_model="tiny", dataset_name="handbook", dataset_format="alpaca")
DATASET = DatasetVersion("handbook", "v1.0", "c0ffee", "0" * 32, Path("/data"), None, 48, "dvc", "/registry")


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def server(mlflow_server):
    yield mlflow_server
    mlflow_server.thaw()


def open_tracker(uri, job_id=None):
    return MlflowTracker(Settings(mlflow_tracking_uri=uri), job_id or str(uuid4()), "a run", CONFIG)


def losses(server, tracker):
    return MlflowClient(server.uri).get_metric_history(tracker.run_id, "loss")


def test_metrics_of_a_frozen_server_are_kept_and_hold_nothing_up(server, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "tasks")
    tracker = open_tracker(server.uri)
    server.freeze()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    began = time.monotonic()
    for step in range(1, 2501):
        tracker.log_metrics({"loss": 1 / step}, step)
    assert time.monotonic() - began < 30  # each that is waited for takes a second
    wait_until(lambda: "MLflow is down" in caplog.text, 60)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    server.thaw()
    wait_until(lambda: "MLflow is back" in caplog.text, 120)
    tracker.finish(succeeded=True)
    assert [point.step for point in losses(server, tracker)] == [*range(1, 2501)]
    assert caplog.text.count("MLflow is down") == 1
    assert caplog.text.count("MLflow is back") == 1
    assert MlflowClient(server.uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_the_end_of_a_job_waits_for_a_frozen_server_only_so_long(server, caplog, monkeypatch):
    tracker = open_tracker(server.uri)
    server.freeze()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    tracker.log_metrics({"loss": 1.0}, 1)
    began = time.monotonic()
    tracker.finish(succeeded=False)
    assert time.monotonic() - began < 30
    assert "did not accept the last metrics" in caplog.text


def test_what_does_not_fit_is_counted_not_dropped_in_silence(caplog):
    client = MlflowClient(f"http://127.0.0.1:{free_port()}")
    sender = MetricSender(lambda points: client.log_batch("0" * 32, metrics=points), kept_points=10)
    for step in range(25):
        sender.put([Metric("loss", 1.0, 0, step)])
    assert not sender.close(lambda: None, 0.5)
    assert "the oldest 15 were dropped" in caplog.text


def test_the_thread_is_part_of_the_job_that_made_it():
    """By its context Prefect knows whose log a line belongs to."""
    job, seen = ContextVar("job"), []
    job.set("this one")
    sender = MetricSender(lambda points: seen.append(job.get(None)))
    sender.put([Metric("loss", 1.0, 0, 1)])
    assert sender.close(lambda: None, 30)
    assert seen == ["this one"]


def test_a_refusal_is_told_and_does_not_stop_what_follows(server, caplog):
    tracker = open_tracker(server.uri)
    tracker.log_metrics({"no name: §": 1.0}, 1)
    wait_until(lambda: "MLflow refused metrics" in caplog.text, 60)
    tracker.log_metrics({"loss": 0.5}, 2)
    tracker.finish(succeeded=True)
    assert [point.step for point in losses(server, tracker)] == [2]


def test_a_job_that_starts_again_goes_on_in_its_run(server):
    first = open_tracker(server.uri, job_id := str(uuid4()))
    first.finish(succeeded=False)
    second = open_tracker(server.uri, job_id)
    assert second.run_id == first.run_id
    second.finish(succeeded=True)
    run = MlflowClient(server.uri).get_run(first.run_id)
    assert (run.info.status, run.data.params["base_model"]) == ("FINISHED", "tiny")


@pytest.mark.stack
def test_jobs_that_put_the_same_new_dataset_down_at_once_all_do(stack):
    """MLflow's server answers some of them with 400 and PostgreSQL's UniqueViolation."""
    trackers = [open_tracker(str(stack.mlflow_tracking_uri)) for _ in range(8)]
    for number in range(10):
        dataset = replace(DATASET, md5=uuid4().hex)
        together = threading.Barrier(len(trackers))

        def put_down(tracker, dataset=dataset, together=together):
            together.wait()
            tracker.log_dataset(dataset)

        with ThreadPoolExecutor(len(trackers)) as threads:
            list(threads.map(put_down, trackers))
        inputs = [tracker.client.get_run(tracker.run_id).inputs.dataset_inputs for tracker in trackers]
        assert [sum(one.dataset.digest == dataset.md5 for one in each) for each in inputs] == [1] * len(trackers)
        assert [len(each) for each in inputs] == [number + 1] * len(trackers)
    for tracker in trackers:
        tracker.finish(succeeded=True)


@pytest.mark.stack
def test_jobs_that_register_the_same_new_name_at_once_get_a_version_each(stack, adapter_dir):
    trackers = [open_tracker(str(stack.mlflow_tracking_uri)) for _ in range(8)]
    name, together = f"adapter-{uuid4()}", threading.Barrier(len(trackers))

    def register(tracker):
        together.wait()
        return register_adapter(tracker, str(uuid4()), name, adapter_dir, DATASET, {})

    with ThreadPoolExecutor(len(trackers)) as threads:
        versions = sorted(int(made.version) for made in threads.map(register, trackers))
    assert versions == list(range(1, len(trackers) + 1))
    for tracker in trackers:
        tracker.finish(succeeded=True)


def test_what_is_there_already_and_stays_in_the_way_is_an_error():
    calls = []

    def make():
        calls.append(1)
        raise RestException({"error_code": "BAD_REQUEST", "message": "(psycopg2.errors.UniqueViolation) duplicate key"})

    with pytest.raises(RestException, match="UniqueViolation"):
        keep_trying(make, "it is made")
    assert len(calls) == MOST_RACES + 1


def test_a_server_that_stays_away_is_an_unavailable_registry():
    client = MlflowClient(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryUnavailable, match=r"did not respond for \d+ s while asking; see `tuneyard status`"):
        keep_trying(lambda: client.get_experiment_by_name("tuneyard"), "asking", patience_seconds=2)


def test_a_registration_waits_for_a_server_that_is_started_again(tmp_path, adapter_dir, caplog):
    folder = tmp_path / "mlflow"
    folder.mkdir()
    server, job_id = MlflowServer(folder), str(uuid4())
    server.start()
    try:
        server.wait()
        tracker = open_tracker(server.uri, job_id)
        server.kill()
        done = []
        thread = threading.Thread(
            target=lambda: done.append(register_adapter(tracker, job_id, "late", adapter_dir, DATASET, {}))
        )
        thread.start()
        wait_until(lambda: "MLflow is down while registering the adapter" in caplog.text, 60)
        server.start()
        thread.join(120)
        assert [adapter.version for adapter in done] == ["1"]
        assert register_adapter(tracker, job_id, "late", adapter_dir, DATASET, {}) == done[0]
        tracker.finish(succeeded=True)
    finally:
        server.kill()


@pytest.mark.parametrize("is_late", [False, True])
def test_a_version_whose_answer_was_lost_is_not_made_twice(server, adapter_dir, is_late):
    """Late: the server, which stood still, carries the first try out when it gets the second."""
    lost, name, job_id = [], f"adapter-{is_late}".lower(), str(uuid4())

    def meddle(path, forward):
        if not path.endswith("model-versions/create"):
            return forward()
        if not lost:
            lost.append(forward)
            if not is_late:
                forward()
            return None
        if is_late:
            lost[0]()
        return forward()

    proxy = Proxy(server.uri, meddle)
    try:
        tracker = open_tracker(proxy.uri, job_id)
        adapter = register_adapter(tracker, job_id, name, adapter_dir, DATASET, {})
        tracker.finish(succeeded=True)
    finally:
        proxy.close()
    assert lost
    assert adapter.version == "1"
    assert [found.version for found in MlflowClient(server.uri).search_model_versions(f"name = '{name}'")] == ["1"]
