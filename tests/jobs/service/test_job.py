"""A job as it is joined from Prefect's run and its report, whatever somebody has edited of the run."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Cancelled, Failed, Scheduled

from jobs.service.job import job_from_report, job_from_run
from jobs.status import JobStatus
from jobs.storage.tables import JobReport

CONFIG = {"base_model": "nobody/job", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
THEN = datetime(2026, 1, 2, tzinfo=UTC)


def make_run(parameters, state=None):
    return FlowRun(id=uuid4(), flow_id=uuid4(), name="a run", parameters=parameters, state=state or Scheduled())


@pytest.mark.parametrize(
    "parameters", [{}, {"config": "text"}, {"config": [1]}, {"config": None}, {"config": {"lora_r": "x"}}, {"x": 1}]
)
@pytest.mark.parametrize("state", [Scheduled(), Failed(message="Validation of flow parameters failed")])
def test_a_run_whose_parameters_are_nonsense_is_shown_all_the_same(parameters, state):
    status = JobStatus.FAILED if state.is_failed() else JobStatus.QUEUED
    job = job_from_run(make_run(parameters, state), status, None, None)
    assert job.spec is None
    assert isinstance(job.raw_config, dict)
    assert job.error_code == ("invalid_config" if state.is_failed() else None)


def test_parameters_count_as_they_are_edited_until_the_job_has_begun_and_not_after():
    run = make_run({"config": CONFIG | {"seed": 2}})
    report = JobReport(job_id=run.id, run={"parameters": {"config": CONFIG | {"seed": 1}}})
    waiting = job_from_run(run, JobStatus.QUEUED, 1, report)
    running = job_from_run(run, JobStatus.RUNNING, None, report, attempt=1)
    assert [job.spec.config.seed for job in (waiting, running)] == [2, 1]


def test_a_job_that_has_ended_is_shown_by_its_report_whatever_its_run_is_set_to():
    run = make_run({"config": CONFIG}, AwaitingRetry())
    report = JobReport(
        job_id=run.id, status="completed", ended_at=THEN, result={"tokens": 1}, run={"parameters": {"config": CONFIG}}
    )
    job = job_from_run(run, JobStatus.RUNNING, 3, report, attempt=1)
    assert (job.status, job.ended_at, job.result) == (JobStatus.COMPLETED, THEN, {"tokens": 1})
    assert (job.queue_position, job.error) == (None, None)


def test_a_job_whose_run_was_deleted_is_shown_as_it_was_kept():
    facts = {"name": "a run", "parameters": {"config": CONFIG}, "created": THEN.isoformat(), "work_queue_name": "high"}
    report = JobReport(job_id=uuid4(), run=facts, status="cancelled", ended_at=THEN)
    job = job_from_report(report.job_id, report)
    assert (job.id, job.name, job.status, job.priority) == (report.job_id, "a run", JobStatus.CANCELLED, "high")
    assert (job.created_at, job.ended_at, job.spec.config.base_model) == (THEN, THEN, "nobody/job")
    assert job_from_report(report.job_id, JobReport(job_id=report.job_id, run=None)) is None


def test_a_run_that_a_worker_cancels_for_want_of_its_deployment_is_no_cancelled_job():
    run = make_run({"config": CONFIG}).model_copy(update={"deployment_id": uuid4()})
    gone = Cancelled(message=f"Deployment {run.deployment_id} no longer exists, cancelled run.")
    run = run.model_copy(update={"state": gone})
    assert job_from_run(run, JobStatus.CANCELLED, None, None).status is JobStatus.QUEUED
    assert job_from_run(run, JobStatus.CANCELLED, None, None, attempt=1).status is JobStatus.RUNNING
    ended = JobReport(job_id=run.id, status="cancelled", ended_at=THEN, run={"parameters": {"config": CONFIG}})
    assert job_from_run(run, JobStatus.CANCELLED, None, ended).status is JobStatus.CANCELLED
