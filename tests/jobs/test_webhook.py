"""A client is told how its job ended, also when it is slow to answer well."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from jobs import webhook
from jobs.events import read_events
from jobs.store import JobReport, engine_for
from tests.receiver import Receiver


@pytest.fixture
def receive(monkeypatch):
    monkeypatch.setattr(webhook, "RETRY_DELAYS_SECONDS", (0.0, 0.01, 0.01))
    opened = []

    def start(*statuses):
        opened.append(Receiver(*statuses))
        return opened[-1]

    yield start
    for receiver in opened:
        receiver.close()


def test_a_completed_job_names_its_adapter():
    job_id = uuid4()
    result = {"model_name": "support", "model_version": "2", "metrics": {"eval_loss": 1.5}}
    report = JobReport(job_id=job_id, result=result, output_path="/out/adapter", tracking_url="http://m/run")

    assert webhook.build_payload(job_id, "completed", report) == {
        "job_id": str(job_id),
        "status": "completed",
        "tracking_url": "http://m/run",
        "output_path": "/out/adapter",
        "model_name": "support",
        "model_version": "2",
        "metrics": {"eval_loss": 1.5},
    }


def test_a_failed_job_says_why_also_when_it_could_not_report():
    job_id = uuid4()
    report = JobReport(job_id=job_id, error="dataset x is not there", error_code="dataset_not_found")

    assert webhook.build_payload(job_id, "failed", report)["error"] == "dataset x is not there"
    assert (
        webhook.build_payload(job_id, "failed", None, "process exited with 137")["error"] == "process exited with 137"
    )


def test_a_receiver_that_fails_once_is_called_again(receive):
    receiver = receive(503, 200)

    assert webhook.deliver(receiver.url, {"job_id": "1"})
    assert receiver.received == [{"job_id": "1"}, {"job_id": "1"}]


def test_a_redirect_is_a_failure_and_not_followed(receive):
    receiver = receive(302)

    assert not webhook.deliver(receiver.url, {"job_id": "1"})
    assert len(receiver.received) == 3


def test_nobody_there_is_a_failure_and_no_exception(receive):
    receiver = receive(200)
    receiver.close()
    receiver.close = lambda: None

    assert not webhook.deliver(receiver.url, {"job_id": "1"})


@pytest.mark.stack
def test_of_several_who_cancel_a_waiting_job_one_calls(stack, receive):
    receiver, job_id, engine = receive(200), uuid4(), engine_for(stack.database_url)
    barrier = threading.Barrier(8)

    def tell(_index):
        barrier.wait()
        webhook.tell_of_cancellation(engine, job_id, receiver.url)

    with ThreadPoolExecutor(8) as pool:
        [*pool.map(tell, range(8))]
    assert [(body["job_id"], body["status"]) for body in receiver.received] == [(str(job_id), "cancelled")]
    assert [(event.event, event.data) for event in read_events(engine, job_id)] == [("end", {"outcome": "cancelled"})]
