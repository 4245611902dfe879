"""Submissions that come together are made together: in order, each once, each with its own answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate

from jobs.clients.idempotency import RequestKey
from jobs.engine.listing import JobFilters
from jobs.errors import TrainingBusy
from jobs.preflight import SubmissionCheck
from jobs.preflight.findings import Finding
from jobs.service.job_service import JobService
from jobs.service.submitter import AT_ONCE, Wanted, count_together
from jobs.spec import JobSpec
from sft.errors import InvalidConfig
from tests.conftest import wait_until
from tests.live_service import wait_until_idle

CONFIG = {"base_model": "nobody/together", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
BULK = "/create_flow_run/bulk"


def wanted(strategy="queue", key=None):
    return Wanted(None, strategy, "normal", RequestKey("POST /train", key, "") if key else None, None, "", None)


def test_who_wants_no_queue_has_a_turn_of_his_own_and_a_repeated_key_comes_later():
    plain, reject = wanted(), wanted("reject")
    assert count_together([plain]) == 1
    assert count_together([plain] * 3) == 3
    assert count_together([plain] * (AT_ONCE + 1)) == AT_ONCE
    assert count_together([plain, plain, reject, plain]) == 2
    assert count_together([reject, plain, plain]) == 1
    assert count_together([reject, reject]) == 1
    assert count_together([wanted(key="a"), wanted(key="b"), plain, wanted(key="a")]) == 3


@pytest.fixture
def service(stack):
    """A service whose work pool is paused, with an empty queue."""
    wait_until_idle(stack)
    with closing(JobService(stack)) as service:
        service.client.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=True))
        yield service
        for job in service.list_jobs(JobFilters(model=CONFIG["base_model"])).jobs:
            if not job.status.is_terminal:
                service.cancel(job.id)
        service.client.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=False))


class Recorder:
    """Records the service's requests to Prefect that make runs, and may answer some of them itself."""

    def __init__(self, service, monkeypatch):
        self.paths = []
        self.refused = ()
        self._send = service.client._client.send
        monkeypatch.setattr(service.client._client, "send", self.send)

    def send(self, request, *arguments, **options):
        path = request.url.path
        if "create_flow_run" in path:
            self.paths.append("bulk" if path.endswith(BULK) else "one")
            if path.endswith(self.refused or "nothing"):
                raise httpx.HTTPStatusError("", request=request, response=httpx.Response(405, request=request))
        return self._send(request, *arguments, **options)


def submit_together(service, submissions):
    """Have these wait together, in this order, and let them be done; the future of each."""
    turns = service._submitter._turns
    with turns._changed:
        turns._is_working = True
    pool = ThreadPoolExecutor(len(submissions))
    started = []
    for number, (arguments, options) in enumerate(submissions, 1):
        started.append(pool.submit(service.submit, *arguments, **options))
        wait_until(lambda number=number: len(turns._waiting) == number, 60)
    with turns._changed:
        turns._is_working = False
        turns._changed.notify_all()
    pool.shutdown()
    return started


@pytest.mark.stack
def test_thirty_together_take_two_requests_and_stand_in_order(service, monkeypatch):
    recorder = Recorder(service, monkeypatch)
    spec = JobSpec.build(config=CONFIG)
    made = [one.result() for one in submit_together(service, [((spec,), {})] * 30)]

    assert [one.queue_position for one in made] == [*range(1, 31)]
    assert service.queue().waiting == [one.id for one in made]
    assert recorder.paths == ["bulk", "bulk"]
    names = {service.get(one.id).name for one in made}
    assert len(names) > 1


@pytest.mark.stack
def test_each_has_its_own_priority_key_warnings_and_error(service, monkeypatch):
    finding = Finding(InvalidConfig, "base_model", "is unknown")
    spec, named = JobSpec.build(config=CONFIG), JobSpec.build(config=CONFIG | {"run_name": "mine"})
    found = SubmissionCheck(lambda: lambda: [finding])
    key = RequestKey("POST /train", "together", "a" * 64)
    strict = SubmissionCheck(lambda: lambda: [finding], is_strict=True)
    started = submit_together(
        service,
        [
            ((spec, "queue", "low"), {}),
            ((named,), {"check": found}),
            ((spec, "queue", "high"), {"request": key}),
            ((spec,), {"request": RequestKey("POST /train", "strict", "a" * 64), "check": strict}),
            ((spec, "reject"), {}),
            ((spec, "queue", "high"), {"request": key}),
            ((spec, "queue", "high"), {"request": RequestKey("POST /train", "together", "b" * 64)}),
        ],
    )
    low, normal, high = (one.result() for one in started[:3])
    assert (low.queue_position, normal.queue_position, high.queue_position) == (3, 2, 1)
    assert service.get(normal.id).name == "mine"
    assert [warning["message"] for warning in normal.warnings] == ["base_model is unknown"]
    with pytest.raises(InvalidConfig, match="base_model is unknown"):
        started[3].result()
    with pytest.raises(TrainingBusy):
        started[4].result()
    assert started[5].result() == high
    with pytest.raises(Exception, match="was sent before with another body"):
        started[6].result()
    assert service.submit(spec, "queue", "high", key) == high
    assert service.queue().waiting == [high.id, normal.id, low.id]


@pytest.mark.stack
def test_a_prefect_server_that_makes_one_run_at_a_time_is_asked_so(service, monkeypatch):
    recorder = Recorder(service, monkeypatch)
    recorder.refused = BULK
    spec = JobSpec.build(config=CONFIG)
    made = [one.result() for one in submit_together(service, [((spec,), {})] * 3)]

    assert [one.queue_position for one in made] == [1, 2, 3]
    assert recorder.paths == ["bulk", "one", "one", "one"]


@pytest.mark.stack
def test_two_services_keep_one_order_under_load(service, stack):
    spec = JobSpec.build(config=CONFIG)
    gate = threading.Barrier(20)
    with closing(JobService(stack)) as other, ThreadPoolExecutor(20) as pool:

        def submit(number):
            gate.wait(90)
            return [(service, other)[number % 2].submit(spec) for _ in range(3)]

        made = [one for several in pool.map(submit, range(20)) for one in several]
    assert sorted(one.queue_position for one in made) == [*range(1, 61)]
    assert service.queue().waiting == [one.id for one in sorted(made, key=lambda one: one.queue_position)]
