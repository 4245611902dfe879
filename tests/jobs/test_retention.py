"""Events do not pile up for ever: those of jobs that ended long ago go, those of others stay."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import update

from jobs.storage.events import forget_old_events, read_events, write_event
from jobs.storage.reports import read_reports, write_report
from jobs.storage.tables import JobEvent, JobReport, engine_for
from jobs.watchdog.retention import Retention

pytestmark = pytest.mark.stack


@pytest.fixture
def engine(stack):
    return engine_for(stack.database_url)


def make_job(engine, *ages_days):
    """A job whose first report and whose events are so many days old."""
    job_id = uuid4()
    write_report(engine, job_id, phase="training", result={"kept": True})
    with engine.begin() as connection:
        for age in ages_days:
            write_event(connection, job_id, "step", {"step": age})
            then = datetime.now(UTC) - timedelta(days=age)
            wanted = (JobEvent.job_id == job_id) & (JobEvent.data["step"].as_integer() == age)
            connection.execute(update(JobEvent).where(wanted).values(created_at=then))
        then = datetime.now(UTC) - timedelta(days=ages_days[0])
        connection.execute(update(JobReport).where(JobReport.job_id == job_id).values(updated_at=then))
    return job_id


def test_events_of_jobs_that_ended_long_ago_go_and_their_reports_stay(engine):
    while forget_old_events(engine, 28):
        pass  # those that other tests have left
    old, newer, long_running = make_job(engine, 40, 31), make_job(engine, 29), make_job(engine, 40, 1)

    assert forget_old_events(engine, 30) == 1
    assert [len(read_events(engine, job_id)) for job_id in (old, newer, long_running)] == [0, 1, 2]
    assert read_reports(engine, [old])[old].result == {"kept": True}
    assert forget_old_events(engine, 30) == 0
    assert forget_old_events(engine, 28) == 1
    assert [len(read_events(engine, job_id)) for job_id in (newer, long_running)] == [0, 2]


def test_the_watchdog_deletes_them(engine):
    old, newer = make_job(engine, 400), make_job(engine, 300)
    Retention(engine, 350).look()
    assert [len(read_events(engine, job_id)) for job_id in (old, newer)] == [0, 1]
