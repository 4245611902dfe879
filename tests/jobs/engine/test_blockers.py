"""What somebody has paused, limited or deleted in Prefect keeps jobs waiting, and every place says so."""

from contextlib import closing

import httpx
import pytest

from jobs.engine.blockers import Blockers, find_blocker
from jobs.engine.listing import JobFilters
from jobs.engine.runs import PrefectRuns
from jobs.service.job_service import JobService
from jobs.spec import JobSpec
from jobs.stack.readiness import check_parts
from jobs.status import JobStatus
from tests.live_service import wait_until_idle

CONFIG = {"base_model": "nobody/blocked", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
HANDS = [
    ("work_pools/gpu", {"is_paused": True}, "the work pool gpu is paused in Prefect; resume it there"),
    ("work_pools/gpu", {"concurrency_limit": 0}, "the work pool gpu has a concurrency limit of 0 in Prefect"),
    ("work_pools/gpu/queues/low", {"is_paused": True}, "the work queue low is paused in Prefect; resume it there"),
    ("work_pools/gpu/queues/low", {"concurrency_limit": 0}, "the work queue low has a concurrency limit of 0"),
]


@pytest.mark.stack
@pytest.mark.parametrize(("path", "change", "said"), HANDS)
def test_jobs_wait_and_it_is_said_why(stack, path, change, said):
    spec = JobSpec.build(config=CONFIG)
    wait_until_idle(stack)
    with httpx.Client(base_url=str(stack.prefect_api_url), timeout=30) as prefect, closing(JobService(stack)) as made:
        made._queue.queue_name("low")
        before = prefect.get(path).raise_for_status().json()
        prefect.patch(path, json=change).raise_for_status()
        try:
            with closing(JobService(stack)) as service:  # which knows the pool as it is now
                job = service.get(service.submit(spec, priority="low").id)
                assert (job.status, job.queue_position) == (JobStatus.QUEUED, 1)
                assert job.waiting_for.startswith(said)
                assert service.queue().waiting_for.startswith(said)
                assert service.queue().waiting == [job.id]
                queued = JobFilters(statuses=frozenset({JobStatus.QUEUED}))
                assert job.id in [one.id for one in service.list_jobs(queued).jobs]
                check = check_parts(stack)["work_pool"]
                assert not check.ok
                assert check.detail.startswith(said)
                assert service.cancel(job.id).status is JobStatus.CANCELLED
        finally:
            prefect.patch(path, json={name: before[name] for name in change}).raise_for_status()
    assert check_parts(stack)["work_pool"].ok


@pytest.mark.stack
def test_a_pool_that_is_gone_is_named_with_the_remedy(stack):
    gone = stack.model_copy(update={"work_pool": "gone"})
    said = "the work pool gone is gone from Prefect; run `tuneyard up`"
    assert check_parts(gone)["work_pool"].detail == said
    with closing(JobService(stack)) as service:
        pool = PrefectRuns(service.client, "gone", service.engine).pool.read()
    assert (pool.slots, pool.blockers.of("default")) == (0, said)


def test_what_is_neither_paused_nor_limited_to_nothing_blocks_nobody():
    assert find_blocker("it", False, None) is None
    assert find_blocker("it", False, 1) is None
    assert Blockers(None, {"low": "low is paused"}).of("default") is None
    assert Blockers("all is paused", {"low": "low is paused"}).of("low") == "all is paused"
