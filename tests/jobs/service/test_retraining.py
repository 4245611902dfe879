"""A retraining is submitted once: not beside one in flight, and not again after it has ended."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import pytest

from jobs.engine.listing import JobFilters
from jobs.service.job_service import JobService
from jobs.service.retraining import submit_retraining
from jobs.spec import JobSpec, MadeBy
from jobs.status import JobStatus
from sft.config import SFTConfig
from tests.conftest import wait_until
from tests.live_service import pause_jobs

pytestmark = pytest.mark.stack


@pytest.fixture
def services(stack):
    """Two of them, as two looks have. Their work pool goes on at the end."""
    with closing(JobService(stack)) as first, closing(JobService(stack)) as second:
        yield first, second
    pause_jobs(stack, is_paused=False)


@pytest.fixture
def make_spec():
    name = f"support-{uuid4().hex[:8]}"
    config = SFTConfig(base_model="nobody/retrained", dataset_name="handbook@v1.0", dataset_format="auto")

    def make(fingerprint="a"):
        made_by = MadeBy(flow="retrain", run_id=str(uuid4()), adapter_version="1", reason="so", fingerprint=fingerprint)
        return JobSpec(config=config, adapter_name=name, made_by=made_by)

    return make


def test_one_in_flight_is_not_doubled_and_one_that_failed_is_submitted_again_only_by_force(stack, services, make_spec):
    service = services[0]
    pause_jobs(stack)  # else the first one might fail before the last one is submitted
    with ThreadPoolExecutor(8) as pool:
        looks = [*pool.map(lambda number: submit_retraining(services[number % 2], make_spec()), range(8))]
    (made,) = (look for look in looks if look.is_new)
    assert {look.job_id for look in looks} == {made.job_id}
    assert {look.state_name for look in looks if not look.is_new} == {"AlreadyRetraining"}
    forced = submit_retraining(service, make_spec(), force=True)
    assert (forced.is_new, forced.job_id) == (False, made.job_id)
    pause_jobs(stack, is_paused=False)  # now it fails: its base model is nowhere
    wait_until(lambda: service.get(made.job_id).status is JobStatus.FAILED, 150)

    pause_jobs(stack)
    again = submit_retraining(service, make_spec())
    assert (again.is_new, again.job_id, again.state_name) == (False, made.job_id, "FailedBefore")
    assert "failed (model_not_found: base_model 'nobody/retrained'" in again.reason
    assert again.reason.endswith("run retrain with force")

    other_data = submit_retraining(service, make_spec("b"))
    assert other_data.is_new
    service.cancel(other_data.job_id)
    assert submit_retraining(service, make_spec("b")).state_name == "CancelledBefore"

    by_force = submit_retraining(service, make_spec("b"), force=True)
    assert by_force.is_new
    service.cancel(by_force.job_id)
    jobs = service.list_jobs(JobFilters(adapter=make_spec().adapter_name, made_by="retrain")).jobs
    assert {job.id for job in jobs} == {made.job_id, other_data.job_id, by_force.job_id}
