"""The job service on a real stack: what several threads and several processes may do at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.states import Cancelled, Pending
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from jobs.clients.idempotency import RequestKey
from jobs.engine.listing import JobFilters
from jobs.engine.pool import POOL_TTL_SECONDS
from jobs.errors import ConfigNotFound, IdempotencyKeyReused, JobConflict, JobNotFound
from jobs.lifecycle.ends import keep_run
from jobs.network.deadlines import WRITE_SECONDS, allowed_seconds
from jobs.preflight import SubmissionCheck
from jobs.service.job_service import JobService
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import JobStatus
from jobs.storage.tables import IdempotencyKey, JobReport
from sft.config import SFTConfig
from sft.errors import InvalidConfig, StackError
from tests.live_service import wait_until_idle

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

CONFIG = {"base_model": "nobody/service", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}


@pytest.fixture(scope="module")
def open_service():
    """Makes services that are closed at the end."""
    with ExitStack() as opened:
        yield lambda settings: opened.enter_context(closing(JobService(settings)))


@pytest.fixture(scope="module")
def service(stack, open_service):
    """A service whose work pool is paused: what is in line stays there."""
    wait_until_idle(stack)  # jobs of other tests have ended
    service = open_service(stack)
    service.client.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=True))
    yield service
    for job in service.list_jobs(JobFilters(model=CONFIG["base_model"])).jobs:
        if not job.status.is_terminal:
            service.cancel(job.id)
    service.client.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=False))
    time.sleep(POOL_TTL_SECONDS + 0.5)


@pytest.fixture
def spec():
    return JobSpec.build(config=SFTConfig.from_dict(CONFIG))


def test_a_created_job_waits_is_seen_by_other_processes_and_starts_once(service, open_service, stack, spec):
    created = service.create(spec)
    assert (created.status, created.queue_position) == (JobStatus.CREATED, None)
    assert open_service(stack).get(created.id).status is JobStatus.CREATED
    assert created.id not in service.queue().waiting

    with ThreadPoolExecutor(10) as pool:
        jobs = [*pool.map(lambda _: service.start(created.id), range(10))]
    assert {job.status for job in jobs} == {JobStatus.QUEUED}
    states = [state.name for state in service.client.read_flow_run_states(created.id)]
    assert states == ["Created", "Scheduled"]
    assert service.cancel(created.id).status is JobStatus.CANCELLED
    assert service.start(created.id).status is JobStatus.CANCELLED


def test_a_created_job_stands_in_line_from_its_start_on(service, spec):
    created = service.create(spec)
    submitted = service.submit(spec)
    started = service.start(created.id)

    assert (submitted.queue_position, started.queue_position) == (1, 2)
    service.cancel(submitted.id)
    assert service.get(created.id).queue_position == 1
    service.cancel(created.id)


def test_created_and_queued_jobs_are_told_apart_in_lists(service, spec):
    created, queued = service.create(spec), service.submit(spec)
    wanted = {created.id, queued.id}

    def listed(*statuses):
        found = service.list_jobs(JobFilters(model=CONFIG["base_model"], statuses=frozenset(statuses))).jobs
        return wanted & {job.id for job in found}

    assert listed(JobStatus.CREATED) == {created.id}
    assert listed(JobStatus.QUEUED) == {queued.id}
    assert listed(JobStatus.CREATED, JobStatus.QUEUED) == wanted
    for job_id in wanted:
        service.cancel(job_id)


def test_a_created_job_can_be_cancelled_and_then_never_starts(service, spec):
    created = service.create(spec)

    assert service.cancel(created.id).status is JobStatus.CANCELLED
    assert service.start(created.id).status is JobStatus.CANCELLED
    with pytest.raises(JobConflict, match="is already cancelled"):
        service.cancel(created.id)
    assert service.stop(created.id).status is JobStatus.CANCELLED


def test_a_crash_between_making_the_run_and_keeping_the_answer_makes_no_second_job(service, spec):
    request = RequestKey("POST /test", "crash", "a" * 64)
    first = service.submit(spec, request=request)
    forget = update(IdempotencyKey).where(IdempotencyKey.key == "crash")
    with service.engine.begin() as connection:
        row = connection.execute(select(IdempotencyKey.answer).where(IdempotencyKey.key == "crash")).scalar_one()
        connection.execute(forget.values(answer={"run_key": row["run_key"]}))  # as it is before the answer is kept

    assert service.submit(spec, "reject", request=request).id == first.id
    assert service.submit(spec, request=request).id == first.id
    with pytest.raises(IdempotencyKeyReused, match="'crash' was sent before with another body"):
        service.submit(spec, request=RequestKey("POST /test", "crash", "b" * 64))
    service.cancel(first.id)


def test_what_is_found_of_a_job_is_waited_for_outside_the_lock(service, spec):
    held = []
    check = SubmissionCheck(lambda: lambda: held.append(service._lock._process_lock.locked()) or ())
    job = service.submit(spec, request=RequestKey("POST /test", "check", "a" * 64), check=check)

    assert held == [False]
    service.cancel(job.id)


def test_a_job_is_made_though_its_record_can_not_be_kept(service, spec, monkeypatch):
    def fail(*_, **__):
        raise OperationalError("", {}, Exception())

    monkeypatch.setattr("jobs.service.submitter.keep_run", fail)
    job = service.create(spec)
    assert job.status is JobStatus.CREATED
    service.cancel(job.id)


def test_a_job_is_kept_where_the_machine_gives_no_more_threads(service, spec, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("jobs.service.submitter._threads.start", refuse)
    job = service.submit(spec, client="somebody")
    with service.engine.connect() as connection:
        kept = connection.execute(select(JobReport.run).where(JobReport.job_id == job.id)).scalar_one()
    assert kept["client"] == "somebody"
    service.cancel(job.id)


def test_a_job_is_kept_with_the_time_limit_of_a_write(service, spec, monkeypatch):
    allowed = []

    def keep(*arguments, **values):
        allowed.append(allowed_seconds())
        return keep_run(*arguments, **values)

    monkeypatch.setattr("jobs.service.submitter.keep_run", keep)
    service.cancel(service.submit(spec).id)
    assert allowed == [WRITE_SECONDS]


def test_a_key_is_free_again_after_two_days_and_not_after_one(service, spec):
    request = RequestKey("POST /test", "old", "a" * 64)
    first = service.submit(spec, request=request)

    def age(hours):
        with service.engine.begin() as connection:
            then = datetime.now(UTC) - timedelta(hours=hours)
            connection.execute(update(IdempotencyKey).where(IdempotencyKey.key == "old").values(created_at=then))

    age(25)
    assert service.submit(spec, request=request).id == first.id
    age(49)
    second = service.submit(spec, request=request)
    assert second.id != first.id
    service.cancel(first.id)
    service.cancel(second.id)


def test_several_services_side_by_side_agree_on_the_line(service, open_service, stack, spec):
    other = open_service(stack)
    with ThreadPoolExecutor(12) as pool:
        submissions = [*pool.map(lambda index: (service, other)[index % 2].submit(spec), range(12))]

    assert sorted(submission.queue_position for submission in submissions) == [*range(1, 13)]
    in_order = [one.id for one in sorted(submissions, key=lambda one: one.queue_position)]
    assert service.queue().waiting == other.queue().waiting == in_order
    for job_id in in_order:
        other.cancel(job_id)


@pytest.mark.parametrize("job_id", ["nonsense", "", "\0", "550e8400-e29b-41d4-a716-446655440000"])
def test_an_unknown_job(service, job_id):
    for method in (service.get, service.start, service.cancel, service.stop):
        with pytest.raises(JobNotFound, match="not found"):
            method(job_id)


def test_what_postgresql_cannot_hold_is_no_saved_configuration(service):
    for config in ({"a": "x\0"}, {"\ud800": 1}, {"a": [{"b": "\udfff"}]}):
        with pytest.raises(InvalidConfig, match="NUL characters nor lone surrogates"):
            service.configs.save("odd", config)
    with pytest.raises(ConfigNotFound, match="Config \0 not found"):
        service.configs.get("\0")


def test_servers_that_are_away_are_named(open_service, stack, spec):
    gone = "http://127.0.0.1:9/api"
    away = open_service(Settings.model_validate(stack.model_dump() | {"prefect_api_url": gone}))
    with pytest.raises(StackError, match="Prefect's API can't be reached"):
        away.submit(spec)

    url = "postgresql+psycopg2://nobody@127.0.0.1:9/none"
    no_database = open_service(Settings.model_validate(stack.model_dump() | {"database_url": url}))
    with pytest.raises(StackError, match="Tuneyard's database can't be reached"):
        no_database.submit(spec)
    with pytest.raises(StackError, match="Tuneyard's database can't be reached"):
        no_database.configs.read_all()


def test_a_job_that_a_worker_takes_while_it_is_looked_at_is_not_counted_against_itself(service, spec):
    waiting = service.submit(spec)
    seen = service._runs.get(waiting.id)
    service.client.set_flow_run_state(waiting.id, Pending(), force=True)
    try:
        assert service._queue.places([seen])[waiting.id] <= 0
    finally:
        service.client.set_flow_run_state(waiting.id, Cancelled(), force=True)


def test_jobs_are_found_by_what_their_ids_begin_with(service, spec):
    ids = [str(service.create(spec).id) for _ in range(3)]

    def find(prefix, limit=None, **wanted):
        return [str(job.id) for job in service.list_jobs(JobFilters(id_prefix=prefix, **wanted), limit).jobs]

    assert [find(job_id) for job_id in ids] == [[job_id] for job_id in ids]
    assert [find(job_id[:-1]) for job_id in ids] == [[job_id] for job_id in ids]
    assert all(job_id in find(job_id[:4]) for job_id in ids)
    assert find(ids[0], statuses=frozenset({JobStatus.RUNNING, JobStatus.STARTING})) == []
    assert find(ids[0], statuses=frozenset({JobStatus.CREATED, JobStatus.QUEUED})) == [ids[0]]
    assert [*map(find, ("ffffffff-ffff", "00000000-0000"))] == [[], []]


def test_configurations_are_found_by_name_and_by_what_their_ids_begin_with(service):
    saved = [service.configs.save(name, {}) for name in ("alike", "alike", "other")]
    ids = [one.config_id for one in saved]

    assert [one.config_id for one in service.configs.read_all(name="alike")] == ids[:2]
    assert service.configs.read_all(name="\0") == []
    for one in ids:
        assert [found.config_id for found in service.configs.read_all(id_prefix=str(one)[:13])] == [one]
    service.configs.delete(ids[0])
    assert service.configs.read_all(id_prefix=str(ids[0])) == []
