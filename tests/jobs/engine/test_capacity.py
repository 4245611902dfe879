"""How many jobs can run at once: the pool's limits and the workers that are online, in every place that shows it."""

from contextlib import ExitStack, closing

import httpx
import pytest
from prefect.client.schemas.objects import WorkPool, WorkQueue

from jobs.engine.capacity import NO_LIMIT, Room, count_slots
from jobs.engine.listing import JobFilters
from jobs.engine.pool import describe_pool
from jobs.errors import TrainingBusy
from jobs.service.job_service import JobService
from jobs.spec import JobSpec
from jobs.stack.readiness import check_parts, judge_workers
from jobs.status import JobStatus
from tests.live_service import wait_until_idle
from tests.workers import StackWorkers

CONFIG = {"base_model": "nobody/capacity", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
NO_WORKER = "no worker of the work pool gpu is online"
QUEUED, STARTING = JobStatus.QUEUED, JobStatus.STARTING


@pytest.mark.parametrize(
    ("pool_type", "limit", "online", "slots"),
    [
        ("process", None, 0, 0),
        ("process", None, 1, 1),  # its own limit is not known: a worker is one slot
        ("process", None, 3, 3),
        ("process", 2, 3, 2),
        ("process", 18, 0, 0),
        ("process", 18, 2, 2),
        ("docker", 8, 2, 2),
        ("docker", None, 0, 0),
        ("kubernetes", None, 1, None),
        ("kubernetes", 4, 1, 4),  # one worker starts all pods
        ("kubernetes", 4, 0, 0),
        ("kubernetes", None, 0, 0),
        ("modal:push", 4, 0, 4),  # has no workers
        ("prefect:managed", None, 0, None),
    ],
)
def test_slots_are_the_workers_that_run_jobs_themselves_and_the_limit_of_other_pools(pool_type, limit, online, slots):
    assert count_slots(pool_type, limit, online) == slots


def describe(online, limit=None, kind="process", queue_limits=None, is_paused=False):
    pool_id = "550e8400-e29b-41d4-a716-446655440000"
    pool = WorkPool(id=pool_id, name="gpu", type=kind, concurrency_limit=limit, default_queue_id=pool_id)
    pool = pool.model_copy(update={"is_paused": is_paused})
    queues = [
        WorkQueue(name=name, priority=rank, concurrency_limit=most, work_pool_id=pool_id)
        for rank, (name, most) in enumerate((queue_limits or {"default": None}).items(), 1)
    ]
    return describe_pool(pool, queues, online)


def test_free_slots():
    occupied = {None: 2, "low": 1}

    def room(pool):
        return pool.room(lambda queues: occupied[queues[0] if queues else None])

    assert room(describe(5)) == Room(3, {})
    assert room(describe(1)) == Room(0, {})
    assert room(describe(0)) == Room(0, {})
    assert room(describe(1, kind="kubernetes")) == Room(NO_LIMIT, {})
    assert room(describe(1, 4, "kubernetes")) == Room(2, {})
    limited = room(describe(9, queue_limits={"high": 0, "default": None, "low": 3}))
    assert (limited.free, limited.of("high"), limited.of("default"), limited.of("low")) == (7, 0, 7, 2)


def test_what_is_said_of_a_pool_that_starts_nothing():
    assert describe(0).blockers.of("default").startswith(NO_WORKER)
    assert describe(0, is_paused=True).blockers.of("default").startswith("the work pool gpu is paused")
    assert describe(0, 0).blockers.of("default").startswith("the work pool gpu has a concurrency limit of 0")
    assert describe(1).blockers.summary() is None
    assert describe(0, kind="modal:push").blockers.summary() is None


@pytest.mark.parametrize(
    ("kind", "online", "taken", "is_ok", "said"),
    [
        ("process", 2, 2, True, "2 online in work pool gpu"),
        ("process", 0, 0, False, "0 online in work pool gpu"),
        ("process", 0, 1, False, "0 online in work pool gpu"),
        (
            "process",
            1,
            4,
            True,
            "1 online in work pool gpu, and 4 runs taken; start each worker with `--limit 1`",
        ),
        ("kubernetes", 1, 4, True, "1 online in work pool gpu"),
        ("modal:push", 0, 4, True, "none is needed"),
    ],
)
def test_workers_are_ready_and_one_without_a_limit_is_noticed(kind, online, taken, is_ok, said):
    check = judge_workers("gpu", kind, online, taken)
    assert (check.ok, check.is_warning) == (is_ok, "--limit 1" in said)
    assert check.detail.startswith(said)


@pytest.fixture
def workers(stack):
    """The stack's workers, stopped and offline; the pool has no limit."""
    pool_url = f"{stack.prefect_api_url}/work_pools/{stack.work_pool}"
    before = httpx.get(pool_url, timeout=30).raise_for_status().json()["concurrency_limit"]
    wait_until_idle(stack)
    workers = StackWorkers(stack)
    workers.pause(is_online=False)
    httpx.patch(pool_url, json={"concurrency_limit": None}, timeout=30).raise_for_status()
    with closing(JobService(stack)) as service:
        service._queue.queue_name("low")
        yield workers
        for job in service.list_jobs(JobFilters(model=CONFIG["base_model"])).jobs:
            if not job.status.is_terminal:
                service.cancel(job.id)
    httpx.patch(pool_url, json={"concurrency_limit": before}, timeout=30).raise_for_status()
    workers.resume()


@pytest.fixture
def open_service(stack):
    """Opens a service that knows the pool as it is now."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(JobService(stack)))


def read(service, *jobs):
    """Status and position of each job, the same in a list as one by one."""
    listed = {job.id: job for job in service.list_jobs(JobFilters(model=CONFIG["base_model"])).jobs}
    single = [service.get(job.id) for job in jobs]
    states = [(job.status, job.queue_position) for job in single]
    assert states == [(listed[job.id].status, listed[job.id].queue_position) for job in jobs]
    queued = JobFilters(model=CONFIG["base_model"], statuses=frozenset({QUEUED}))
    assert {job.id for job in service.list_jobs(queued).jobs} == {job.id for job in single if job.status is QUEUED}
    queue = service.queue()
    assert {*queue.waiting} == {job.id for job in single if job.status is QUEUED}
    assert queue.is_training_running == any(job.status is STARTING for job in single)
    return states


@pytest.mark.stack
def test_without_a_worker_nothing_starts_and_it_is_said(stack, workers, open_service):
    service, spec = open_service(), JobSpec.build(config=CONFIG)
    first, second = service.submit(spec), service.submit(spec)

    assert (first.queue_position, second.queue_position) == (1, 2)
    assert read(service, first, second) == [(QUEUED, 1), (QUEUED, 2)]
    assert service.get(first.id).waiting_for.startswith(NO_WORKER)
    assert service.queue().waiting_for.startswith(NO_WORKER)
    with pytest.raises(TrainingBusy):
        service.submit(spec, "reject")
    assert not check_parts(stack)["worker"].ok


@pytest.mark.stack
def test_every_worker_is_a_slot_below_the_pools_limit(stack, workers, open_service):
    spec = JobSpec.build(config=CONFIG)
    for name in ("host-a", "host-b"):
        workers.send_heartbeat(name)
    try:
        service = open_service()
        made = [service.submit(spec) for _ in range(3)]
        assert [one.queue_position for one in made] == [None, None, 1]
        assert read(service, *made) == [(STARTING, None), (STARTING, None), (QUEUED, 1)]
        assert service.queue().waiting_for is None

        pool_url = f"{stack.prefect_api_url}/work_pools/{stack.work_pool}"
        httpx.patch(pool_url, json={"concurrency_limit": 1}, timeout=30).raise_for_status()
        assert read(open_service(), *made) == [(STARTING, None), (QUEUED, 1), (QUEUED, 2)]
    finally:
        workers.forget("host-a")
    httpx.patch(pool_url, json={"concurrency_limit": 18}, timeout=30).raise_for_status()
    try:
        assert read(open_service(), *made) == [(STARTING, None), (QUEUED, 1), (QUEUED, 2)]
    finally:
        workers.forget("host-b")
    assert read(open_service(), *made) == [(QUEUED, 1), (QUEUED, 2), (QUEUED, 3)]


@pytest.mark.stack
def test_a_work_queues_limit_holds_back_its_own_jobs_only(stack, workers, open_service):
    spec = JobSpec.build(config=CONFIG)
    queue_url = f"{stack.prefect_api_url}/work_pools/{stack.work_pool}/queues/default"
    before = httpx.get(queue_url, timeout=30).raise_for_status().json()["concurrency_limit"]
    httpx.patch(queue_url, json={"concurrency_limit": 1}, timeout=30).raise_for_status()
    names = ("host-a", "host-b", "host-c")
    for name in names:
        workers.send_heartbeat(name)
    try:
        service = open_service()
        made = [service.submit(spec, priority=priority) for priority in ("normal", "normal", "low", "low", "low")]
        assert read(service, *made) == [
            *[(STARTING, None), (QUEUED, 1)],
            *[(STARTING, None), (STARTING, None), (QUEUED, 2)],
        ]
    finally:
        for name in names:
            workers.forget(name)
        httpx.patch(queue_url, json={"concurrency_limit": before}, timeout=30).raise_for_status()
