"""Events of a job: what is written, and how it is followed to an end that the process could not tell of itself."""

from uuid import uuid4

import pytest
from prefect.states import Failed, Running

from jobs.results.feed import EventFeed
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.spec import JobSpec
from jobs.status import SFT_STATUS_NAMES
from jobs.storage.events import read_events, write_event
from jobs.storage.reports import ProgressWriter, read_reports
from jobs.storage.tables import engine_for
from sft.config import SFTConfig

pytestmark = pytest.mark.stack

CONFIG = SFTConfig(base_model="tiny/llama", dataset_name="handbook@v1.0", dataset_format="alpaca")


@pytest.fixture(scope="module")
def service(stack):
    service = JobService(stack)
    yield service
    service.close()


@pytest.fixture
def job(service) -> Job:
    return service.create(JobSpec(config=CONFIG))


def step(number, total=10, **values):
    return {"step": number, "total_steps": total, "loss": 4.0 / number} | values


def poll_until_over(feed):
    events = []
    while not feed.is_over:
        events += feed.poll()
    return events


def write(service, job, event, **data):
    with service.engine.begin() as connection:
        write_event(connection, job.id, event, data)


def test_steps_within_a_second_are_one_event_that_lists_them_all(stack):
    engine, job_id = engine_for(stack.database_url), uuid4()
    writer = ProgressWriter(engine.begin, job_id, min_interval_seconds=60)
    for number in range(1, 6):
        writer(step(number, learning_rate=0.1, grad_norm=2.0, tokens_per_second=50.0))

    (event,) = read_events(engine, job_id)
    assert event.data["step"] == 1
    writer.flush()
    writer.flush()
    _, event = read_events(engine, job_id)
    assert event.data["step"] == 5
    assert event.data["recent"] == [[number, 4.0 / number, 0.1, 2.0, 50.0] for number in (2, 3, 4, 5)]
    assert read_reports(engine, [job_id])[job_id].progress == step(
        5, learning_rate=0.1, grad_norm=2.0, tokens_per_second=50.0
    )


def test_the_last_step_is_written_at_once(stack):
    engine, job_id = engine_for(stack.database_url), uuid4()
    writer = ProgressWriter(engine.begin, job_id, min_interval_seconds=60)
    for number in (1, 2, 3):
        writer(step(number, total=3))

    assert [event.data["step"] for event in read_events(engine, job_id)] == [1, 3]


def test_training_that_stops_early_has_nothing_left_to_do(stack):
    engine, job_id = engine_for(stack.database_url), uuid4()
    writer = ProgressWriter(engine.begin, job_id, min_interval_seconds=60)
    for number in (1, 2):
        writer(step(number, total=3, percent=33.3, eta_seconds=9.0))
    writer.finish()

    assert read_reports(engine, [job_id])[job_id].progress == step(2, total=3, percent=100.0, eta_seconds=0.0)
    assert [event.data["percent"] for event in read_events(engine, job_id)] == [33.3, 33.3]


def test_numbers_that_json_does_not_have_are_null(stack):
    engine, job_id = engine_for(stack.database_url), uuid4()
    ProgressWriter(engine.begin, job_id)(step(1, grad_norm=float("nan"), eta_seconds=float("inf")))

    (event,) = read_events(engine, job_id)
    assert (event.data["grad_norm"], event.data["eta_seconds"], event.data["recent"][0][3]) == (None, None, None)


def test_a_job_that_is_cancelled_before_it_ran_ends(service, job):
    feed = EventFeed(service, job, words=SFT_STATUS_NAMES)
    assert feed.poll() == []
    assert not feed.is_over
    service.cancel(job.id)

    (end,) = poll_until_over(feed)
    assert (end.id, end.event, end.data["status"], end.data["error"]) == ("end", "end", "stopped", None)


def test_a_job_that_failed_without_a_report_ends_with_what_prefect_knows(service, job):
    service.client.set_flow_run_state(job.id, Running(), force=True)
    write(service, job, "phase", phase="training")
    feed = EventFeed(service, service.get(job.id))
    service.client.set_flow_run_state(job.id, Failed(message="process exited with 137"), force=True)

    phase, end = poll_until_over(feed)
    assert (phase.event, phase.data["phase"]) == ("phase", "training")
    assert (end.data["status"], end.data["error"]) == ("failed", "process exited with 137")


def test_the_end_of_a_process_is_not_the_end_of_its_job(service, job):
    write(service, job, "begin", step=0)
    write(service, job, "end", outcome="interrupted")
    write(service, job, "begin", step=2)
    feed = EventFeed(service, job)

    assert [(event.event, event.data["step"]) for event in feed.poll()] == [("begin", 0), ("begin", 2)]
    assert not feed.is_over
    service.cancel(job.id)
    assert [event.event for event in poll_until_over(feed)] == ["end"]


def test_a_long_history_is_replayed_whole_and_in_order(service, job):
    for number in range(1, 1203):
        write(service, job, "step", step=number)
    service.cancel(job.id)

    events = poll_until_over(EventFeed(service, service.get(job.id)))
    assert [event.data.get("step") for event in events] == [*range(1, 1203), None]
    behind = poll_until_over(EventFeed(service, service.get(job.id), after=int(events[1199].id)))
    assert [event.id for event in behind] == [event.id for event in events[1200:]]
