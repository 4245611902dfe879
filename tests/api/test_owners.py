"""Whose jobs a key sees and cancels: its own, or all."""

from contextlib import closing
from uuid import uuid4

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text, update

from api.main import create_app
from jobs.clients.keys import KeyScope, create_key
from jobs.engine.pool_runs import PoolRuns
from jobs.lifecycle.ends import keep_run
from jobs.service.job_service import JobService
from jobs.service.retraining import find_owner, submit_retraining
from jobs.spec import JobSpec, MadeBy
from jobs.storage.events import write_event
from jobs.storage.tables import JobReport, engine_for
from jobs.watchdog.owners import OwnerTags
from sft.config import SFTConfig
from tests.live_service import pause_jobs, wait_until_idle

pytestmark = pytest.mark.stack

BODY = {"model_name": "nobody/nothing", "dataset_version": "v1.0", "max_steps": 1}
BELOW = ("", "/events", "/logs", "/logs?follow=true", "/metrics", "/checkpoints", "/adapter", "/deliveries")


@pytest.fixture(scope="module")
def paused(stack):
    """Nothing starts in the stack's pool."""
    pause_jobs(stack)
    wait_until_idle(stack)
    yield
    pause_jobs(stack, False)


@pytest.fixture
def settings(own_database, paused):
    return own_database


@pytest.fixture
def engine(settings):
    return engine_for(settings.database_url)


@pytest.fixture
def clients(settings, engine):
    """Makes clients of the API that send a key of their own; what they submitted is cancelled at the end."""
    made = []

    def make(scope=KeyScope.SUBMIT, of=None, **further):
        record, key = create_key(engine, f"key-{len(made)}", scope, of and of.owner_id)
        app = create_app(settings.model_copy(update=further))
        client = TestClient(app, headers={"Authorization": f"Bearer {key}"})
        client.owner_id = record.owner_id or record.id
        made.append(client)
        return client

    yield make
    (admin := make(KeyScope.ADMIN)).get("/queue")
    for job in admin.get("/train", params={"status": "queued"}).json():
        admin.delete(f"/train/{job['job_id']}")
    for client in made:
        client.app.state.access.close()


def submit(client, **fields):
    response = client.post("/train", json=BODY | fields)
    assert response.status_code == 200, response.text
    return response.json()["job_id"]


def ids(client, **filters):
    jobs = client.get("/train", params=filters).json()
    assert [job["job_id"] for job in client.get("/api/sft/jobs", params=filters).json()["jobs"]] == [
        job["job_id"] for job in jobs
    ]
    return [job["job_id"] for job in jobs]


def blank(response, job_id):
    """A response without what names the job and the request."""
    return response.status_code, {**response.json(), "request_id": None, "detail": ""}, job_id in response.text


def test_a_submit_key_has_its_own_jobs_and_those_of_others_are_as_unknown(clients):
    ours, theirs = clients(), clients()
    mine, other, unknown = submit(ours), submit(theirs), str(uuid4())

    assert ids(ours) == [mine]
    assert ids(theirs) == [other]
    job = ours.get(f"/train/{mine}").json()
    assert job["owner"] == str(ours.owner_id)
    for interface in ("/train", "/api/sft/jobs"):
        for path in BELOW:
            denied, missing = ours.get(f"{interface}/{other}{path}"), ours.get(f"{interface}/{unknown}{path}")
            assert denied.status_code == 404
            assert blank(denied, other) == blank(missing, unknown)
            assert denied.json()["detail"] == f"Job {other} not found"
        assert ours.head(f"{interface}/{other}/adapter").status_code == 404
        assert (
            ours.post(f"{interface}/{other}/deliveries/{uuid4()}/resend").json()["detail"] == f"Job {other} not found"
        )
    assert ours.delete(f"/train/{other}").status_code == 404
    assert ours.post(f"/api/sft/jobs/{other}/stop").status_code == 404
    assert theirs.get(f"/train/{other}").json()["status"] == "queued"
    assert ours.delete(f"/train/{mine}").status_code == 200
    assert ours.delete(f"/train/{mine}").status_code == 400
    assert ours.post(f"/api/sft/jobs/{mine}/stop").status_code == 200


def test_prefect_is_asked_the_same_for_a_job_of_others_as_for_an_unknown_one(clients, settings, monkeypatch):
    """So that neither what is answered nor how long it takes tells them apart."""
    ours, theirs = clients(), clients()
    other = submit(theirs)
    with closing(JobService(settings)) as service:
        asked, send = [], httpx.Client.send

        def note(client, request, **more):
            asked.append(request.url.path)
            return send(client, request, **more)

        monkeypatch.setattr(httpx.Client, "send", note)

        def ask(job_id):
            asked.clear()
            with pytest.raises(Exception, match="not found"):
                service.get(job_id, ours.owner_id)
            return [*asked]

        ask(uuid4())  # Prefect's client asks for a token first
        assert ask(other) == ask(str(uuid4())) == ["/api/flow_runs/filter"]


def test_others_count_in_the_queue_and_are_not_named(clients):
    ours, theirs = clients(), clients()
    first, second, third = submit(ours), submit(theirs), submit(ours)

    queue = ours.get("/queue").json()
    assert queue["queued_jobs"] == [first, third]
    all_of_it = clients(KeyScope.ADMIN).get("/queue").json()
    assert [job_id for job_id in all_of_it["queued_jobs"] if job_id in (first, second, third)] == [first, second, third]
    assert queue["queue_length"] == all_of_it["queue_length"] == len(all_of_it["queued_jobs"])
    positions = [client.get(f"/train/{job_id}").json()["queue_position"] for client, job_id in
                 ((ours, first), (theirs, second), (ours, third))]  # fmt: skip
    assert positions == [positions[0], positions[0] + 1, positions[0] + 2]


def test_pages_and_filters_of_a_list_have_the_keys_jobs_alone(clients):
    ours, theirs = clients(), clients()
    made = []
    for number in range(5):
        made.append(submit(ours, metadata={"round": str(number % 2)}))
        submit(theirs, metadata={"round": str(number % 2)})

    seen, cursor = [], None
    while True:
        page = ours.get("/train", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        seen += [[job["job_id"] for job in page.json()]]
        if not (cursor := page.headers.get("X-Next-Cursor")):
            break
    newest_first = made[::-1]
    assert seen == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert ids(ours, **{"metadata.round": "1"}) == [made[3], made[1]]
    assert [job["job_id"] for job in ours.get("/train", params={"status": "queued"}).json()] == newest_first
    prefix = theirs.get("/train", params={"limit": 1}).json()[0]["job_id"][:8]
    assert ids(ours, id_prefix=prefix) == []
    assert len(ids(theirs, id_prefix=prefix)) == 1


def test_an_admin_sees_all_and_a_read_key_by_the_setting_or_the_key_it_is_for(clients):
    ours, theirs = clients(), clients()
    mine, other = submit(ours), submit(theirs)

    admin = clients(KeyScope.ADMIN)
    assert {mine, other} <= {*ids(admin)}
    assert {mine, other} <= {*ids(clients(KeyScope.READ))}
    assert ids(clients(KeyScope.READ, read_keys_see="own")) == []
    for setting in ("own", "all"):
        assert ids(clients(KeyScope.READ, of=ours, read_keys_see=setting)) == [mine]
    assert {mine, other} <= {*ids(clients(submit_keys_see="all"))}
    assert admin.delete(f"/train/{other}").status_code == 200


def test_a_key_that_replaces_another_has_its_jobs(clients):
    ours = clients()
    mine = submit(ours)
    replacement = clients(of=ours)
    made = submit(replacement)
    assert ids(replacement) == ids(ours) == [made, mine]
    assert replacement.delete(f"/train/{mine}").status_code == 200


def test_a_job_whose_run_was_deleted_stays_its_owners(clients, settings, engine):
    ours, theirs = clients(), clients()
    mine = submit(ours)
    httpx.delete(f"{settings.prefect_api_url}/flow_runs/{mine}", timeout=60).raise_for_status()

    assert ours.get(f"/train/{mine}").json()["owner"] == str(ours.owner_id)
    assert theirs.get(f"/train/{mine}").status_code == 404
    assert ours.delete(f"/train/{mine}").status_code == 200


def test_a_repeated_request_gets_the_job_of_the_owner_that_sent_it(clients):
    ours, theirs = clients(), clients()
    once = {"Idempotency-Key": uuid4().hex}
    first, again, renewed, other = (client.post("/train", json=BODY, headers=once).json()["job_id"]
                                    for client in (ours, ours, clients(of=ours), theirs))  # fmt: skip
    assert first == again == renewed != other
    assert (ids(ours), ids(theirs)) == ([first], [other])


def test_without_keys_jobs_have_no_owner_and_a_key_made_later_sees_none_of_them(clients, settings):
    open_api = TestClient(create_app(settings))
    job_id = submit(open_api)
    assert open_api.get(f"/train/{job_id}").json()["owner"] is None
    assert job_id in ids(open_api)

    assert clients().get(f"/train/{job_id}").status_code == 404
    assert clients(KeyScope.ADMIN).get(f"/train/{job_id}").status_code == 200
    open_api.app.state.access.close()


def test_a_retraining_belongs_to_the_owner_of_the_job_that_trained_the_adapter(clients, settings):
    ours = clients()
    trained = submit(ours, lora_name="support")
    config = SFTConfig(base_model="nobody/retrained", dataset_name="handbook@v1.0", dataset_format="auto")
    made_by = MadeBy(flow="retrain", run_id=str(uuid4()), adapter_version="1", reason="so", fingerprint=uuid4().hex)
    spec = JobSpec(config=config, adapter_name=f"support-{uuid4().hex[:8]}", made_by=made_by)
    with closing(JobService(settings)) as service:
        made = submit_retraining(service, spec, owner=find_owner(service, trained))
        assert find_owner(service, "") is find_owner(service, str(uuid4())) is None
    assert ids(ours) == [str(made.job_id), trained]


def test_jobs_from_before_owners_are_given_the_key_that_submitted_them(clients, settings, engine):
    ours = clients()
    old, deleted, nobodys = submit(ours), submit(ours), submit(ours)
    with httpx.Client(base_url=str(settings.prefect_api_url), timeout=60) as prefect:
        for job_id in (old, deleted, nobodys):  # as an earlier release left them
            prefect.patch(f"/flow_runs/{job_id}", json={"tags": ["model:nobody/nothing", "mine"]}).raise_for_status()
            with engine.begin() as connection:
                connection.execute(
                    update(JobReport)
                    .where(JobReport.job_id == job_id)
                    .values(run=text("jsonb_set(run, '{tags}', '[\"mine\"]')"))
                )
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE job_reports SET run = run - 'client' WHERE job_id = '{nobodys}'"))  # noqa: S608
        prefect.delete(f"/flow_runs/{deleted}").raise_for_status()
        assert ids(ours) == []

        task = OwnerTags(engine, PoolRuns(prefect, settings.work_pool, engine))
        task.look()
        task.look()
        tags = prefect.get(f"/flow_runs/{old}").json()["tags"]
    assert ids(ours) == [old]
    assert tags == ["mine", "model:nobody/nothing", f"owner:{ours.owner_id}"]
    assert ours.get(f"/train/{deleted}").status_code == 200
    assert ours.get(f"/train/{nobodys}").status_code == 404


def test_a_batch_of_old_jobs_is_followed_by_the_next(clients, settings, engine, monkeypatch):
    monkeypatch.setattr("jobs.watchdog.owners.BATCH_JOBS", 1)
    facts = {"name": "x", "parameters": {}, "tags": [], "created": "2026-01-01T00:00:00Z"}
    jobs = [uuid4(), uuid4()]
    ours = clients()
    for job_id in jobs:
        with engine.begin() as connection:
            keep_run(connection, job_id, facts, client=f"key {ours.owner_id}")
            write_event(connection, job_id, "phase", {})
    with httpx.Client(base_url=str(settings.prefect_api_url), timeout=60) as prefect:
        task = OwnerTags(engine, PoolRuns(prefect, settings.work_pool, engine))
        for _ in range(4):
            task.look()
    assert [ours.get(f"/train/{job_id}").status_code for job_id in jobs] == [200, 200]
