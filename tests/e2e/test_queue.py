"""The line of jobs as clients meet it, with the work pool paused so that nobody leaves it by himself."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.states import AwaitingRetry, Cancelled, Pending, Scheduled

from jobs.engine.pool import POOL_TTL_SECONDS
from tests.conftest import wait_until
from tests.e2e.line import NOBODY, ask_together, clear_line

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

BODY = {"model_name": "nobody/queue", "template": "chatml", "max_steps": 1}
SFT = {"base_model": "nobody/queue", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture(autouse=True)
def empty(paused, api):
    """Nothing starts while these tests run, and every one begins with an empty line."""
    clear_line(api)


def _post(api, **changes):
    answer = api.post("/train", json=BODY | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _position(api, job_id):
    return api.get(f"/train/{job_id}").json()["queue_position"]


# -- idempotency


def test_twenty_posts_with_one_key_make_one_job_and_get_one_answer(api):
    headers = {"Idempotency-Key": "twenty"}

    answers = ask_together(20, lambda _: api.post("/train", json=BODY, headers=headers))

    assert [answer.status_code for answer in answers] == [200] * 20
    assert len({answer.text for answer in answers}) == 1
    assert api.get("/queue").json()["queued_jobs"] == [answers[0].json()["job_id"]]


@pytest.mark.parametrize(("path", "body"), [("/train", BODY), ("/api/sft/train", {"config": SFT})])
def test_the_same_key_gets_the_first_answer_again_and_another_body_is_refused(api, path, body):
    headers = {"Idempotency-Key": f"again {path}"}
    first = api.post(path, json=body, headers=headers)
    api.post("/train", json=BODY)
    api.delete(f"/train/{first.json()['job_id']}")

    again = api.post(path, json=dict(reversed(body.items())), headers=headers)
    other = api.post(path, json={**body, "webhook_url": "http://example.com"}, headers=headers)

    assert (again.status_code, again.json()) == (200, first.json())
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert api.get("/queue").json()["queue_length"] == 1


def test_a_key_belongs_to_its_endpoint(api):
    headers = {"Idempotency-Key": "both"}
    answers = [
        api.post("/train", json=BODY, headers=headers),
        api.post("/api/sft/train", json={"config": SFT}, headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["job_id"] != answers[1].json()["job_id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "caf\xe9".encode("latin-1")])
def test_a_key_that_is_no_key(api, key):
    headers = {"Idempotency-Key": key}

    assert api.post("/train", json=BODY, headers=headers).status_code == 422
    assert api.post("/api/sft/train", json={"config": SFT}, headers=headers).status_code == 400


# -- the line


def test_of_fifty_posts_that_want_no_queue_one_is_taken(api):
    answers = ask_together(50, lambda _: api.post("/train?strategy=reject", json=BODY))

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 49
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"training_busy"}
    assert api.get("/queue").json()["queue_length"] == 1


def test_a_job_that_is_set_for_later_is_not_in_line(api, prefect):
    deployment = prefect.read_deployment_by_name("finetune/sft")
    later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
    run = prefect.create_flow_run_from_deployment(deployment.id, parameters={"config": SFT}, state=later)

    assert api.get("/queue").json() == NOBODY
    assert (api.get(f"/train/{run.id}").json()["status"], _position(api, run.id)) == ("queued", None)
    assert api.post("/train?strategy=reject", json=BODY).status_code == 200


def test_thirty_posts_at_once_stand_at_positions_one_to_thirty(api):
    answers = ask_together(30, lambda _: _post(api))

    words = [answer["message"].rsplit(" ", 1) for answer in answers]
    assert {text for text, _ in words} == {"Training job added to queue at position"}
    assert sorted(int(number) for _, number in words) == [*range(1, 31)]
    by_position = sorted(answers, key=lambda answer: int(answer["message"].rsplit(" ", 1)[1]))
    assert api.get("/queue").json()["queued_jobs"] == [answer["job_id"] for answer in by_position]
    listed = {job["job_id"]: job["queue_position"] for job in api.get("/train").json() if job["status"] == "queued"}
    assert [listed[answer["job_id"]] for answer in by_position] == [*range(1, 31)]


def test_positions_move_up_without_a_gap(api):
    ids = [_post(api)["job_id"] for _ in range(4)]
    api.delete(f"/train/{ids[1]}")

    assert [_position(api, job_id) for job_id in ids] == [1, None, 2, 3]


def test_a_higher_priority_goes_first_and_among_equals_the_earlier(api):
    priorities = ["low", "normal", "high", "low", "normal", "high"]
    ids = [_post(api, priority=priority)["job_id"] for priority in priorities]
    expected = [ids[2], ids[5], ids[1], ids[4], ids[0], ids[3]]

    assert api.get("/queue").json()["queued_jobs"] == expected
    assert [_position(api, job_id) for job_id in expected] == [1, 2, 3, 4, 5, 6]
    assert [api.get(f"/api/sft/jobs/{job_id}").json()["priority"] for job_id in ids] == priorities
    assert _post(api, priority="high")["message"] == "Training job added to queue at position 3"
    assert api.post("/train", json=BODY | {"priority": "urgent"}).status_code == 422


def test_prefects_workers_take_them_in_that_order(api, prefect, stack):
    ids = [_post(api, priority=priority)["job_id"] for priority in ("low", "normal", "high")]
    prefect.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=False))
    try:
        wait_until(lambda: all(api.get(f"/api/sft/jobs/{job_id}").json()["started_at"] for job_id in ids), 240)
    finally:
        prefect.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=True))
    jobs = [api.get(f"/train/{job_id}").json() for job_id in ids]

    in_order = sorted(jobs, key=lambda job: job["start_time"])
    assert [job["job_id"] for job in in_order] == ids[::-1]
    time.sleep(POOL_TTL_SECONDS + 0.5)


# -- ending a job, in every state


def test_a_waiting_job_ends_at_once_and_only_once(api):
    job_id = _post(api)["job_id"]

    assert api.delete(f"/train/{job_id}").json()["status"] == "cancelled"
    assert api.get(f"/train/{job_id}").json()["status"] == "cancelled"
    refused = api.delete(f"/train/{job_id}")
    assert (refused.status_code, refused.json()["code"]) == (400, "job_conflict")
    stopped = api.post(f"/api/sft/jobs/{job_id}/stop")
    assert (stopped.status_code, stopped.json()) == (200, {"message": f"Job {job_id} stopped"})


def test_a_job_that_waits_for_its_next_attempt_ends_at_once(api, prefect):
    job_id = _post(api)["job_id"]
    prefect.update_flow_run(job_id, infrastructure_pid="host:999999999")
    prefect.set_flow_run_state(job_id, AwaitingRetry(), force=True)

    assert api.get(f"/train/{job_id}").json()["status"] == "running"
    assert api.get("/queue").json() == {"is_training_running": True, "queue_length": 0, "queued_jobs": []}
    assert api.delete(f"/train/{job_id}").status_code == 200
    assert prefect.read_flow_run(job_id).state.name == "Cancelled"


def test_a_job_whose_process_is_starting_is_cancelling_until_that_has_gone(api, prefect):
    job_id = _post(api)["job_id"]
    prefect.set_flow_run_state(job_id, Pending(), force=True)

    assert api.get(f"/train/{job_id}").json()["status"] == "running"
    assert [api.delete(f"/train/{job_id}").status_code for _ in range(2)] == [200, 200]
    assert prefect.read_flow_run(job_id).state.name == "Cancelling"
    assert api.get(f"/api/sft/jobs/{job_id}").json()["status"] == "stopped"
    prefect.set_flow_run_state(job_id, Cancelled(), force=True)
    assert api.delete(f"/train/{job_id}").status_code == 400


@pytest.mark.parametrize("job_id", [UNKNOWN, "nonsense", "a%00b", "%F0%9F%92%A9", "..%2Fx", "0" * 500])
def test_nobodys_id(api, job_id):
    for answer in (
        api.get(f"/train/{job_id}"),
        api.delete(f"/train/{job_id}"),
        api.get(f"/api/sft/jobs/{job_id}"),
        api.post(f"/api/sft/jobs/{job_id}/stop"),
        api.get(f"/api/sft/configs/{job_id}"),
        api.patch(f"/api/sft/configs/{job_id}", json={}),
    ):
        assert 400 <= answer.status_code < 500, answer.text
        assert "\0" in job_id or "%00" in job_id or answer.status_code in (404, 405)


# -- metadata, filters, pages


def test_metadata_is_kept_as_it_was_given(api):
    metadata = {"team": "{{ flow_run.name }}", "run.id-1_x": 'a:b=c "q" \\ é', "empty": ""}
    job_id = _post(api, metadata=metadata)["job_id"]

    assert api.get(f"/train/{job_id}").json()["metadata"] == metadata
    assert api.get(f"/api/sft/jobs/{job_id}").json()["metadata"] == metadata
    found = api.get("/train", params={"metadata": [f"{key}:{value}" for key, value in metadata.items()]})
    assert [job["job_id"] for job in found.json()] == [job_id]


@pytest.mark.parametrize(
    "metadata",
    [
        {"__prefect_kind": "jinja"},
        {"a b": "x"},
        {"": "x"},
        {"k": "x" * 257},
        {"k" * 65: "x"},
        {"k": 1},
        {str(number): "x" for number in range(17)},
        {"k": "\0"},
        ["k"],
    ],
)
def test_metadata_that_is_refused(api, metadata):
    assert api.post("/train", json=BODY | {"metadata": metadata}).status_code == 422
    assert api.post("/api/sft/train", json={"config": SFT, "metadata": metadata}).status_code == 400


def test_lists_are_filtered(api):
    began = datetime.now(UTC)
    a = _post(api, lora_name="filter-a", metadata={"team": "red", "n": "1"})["job_id"]
    b = _post(api, lora_name="filter-b", metadata={"team": "red"}, dataset_version="other@main")["job_id"]
    middle = datetime.now(UTC)
    c = _post(api, model_name="nobody/else", lora_name="filter-a", metadata={"team": "blue"})["job_id"]
    api.delete(f"/train/{b}")
    soon = datetime.now(UTC)  # a run that is set for later has that time

    def listed(**params):
        params = {"created_after": began.isoformat(), "created_before": soon.isoformat()} | params
        return [job["job_id"] for job in api.get("/train", params=params).json()]

    assert listed() == [c, b, a]
    assert listed(adapter="filter-a") == [c, a]
    assert listed(adapter="filter-a", model="nobody/queue") == [a]
    assert listed(dataset="other") == listed(dataset="other@main") == [b]
    assert listed(dataset="handbook") == [c, a]
    assert listed(**{"metadata.team": "red"}) == [b, a]
    assert listed(**{"metadata.team": "red", "metadata": "n:1"}) == [a]
    assert listed(created_before=middle.timestamp()) == [b, a]
    assert listed(status="queued") == [c, a]
    assert listed(status="cancelled") == [b]
    assert listed(status="running") == listed(status="completed") == listed(status="failed") == []
    found = api.get("/api/sft/jobs", params={"status": "stopped", "adapter": "filter-b"}).json()
    assert [job["job_id"] for job in found["jobs"]] == [b]


def test_pages_hold_every_job_once_also_while_jobs_come_in(api):
    began = datetime.now(UTC)
    ids = [_post(api)["job_id"] for _ in range(7)]
    soon = began + timedelta(minutes=10)  # a run that is set for later has that time
    seen, params = [], {"limit": 3, "created_after": began.isoformat(), "created_before": soon.isoformat()}
    while True:
        answer = api.get("/train", params=params)
        seen.append([job["job_id"] for job in answer.json()])
        _post(api)
        if "X-Next-Cursor" not in answer.headers:
            break
        assert api.get(answer.links["next"]["url"]).json()[0]["job_id"] in ids
        params["cursor"] = answer.headers["X-Next-Cursor"]

    newest_first = ids[::-1]
    assert seen == [newest_first[:3], newest_first[3:6], newest_first[6:]]


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 201},
        {"limit": "x"},
        {"cursor": "x"},
        {"cursor": "bnVsbA"},
        {"status": "nonsense"},
        {"created_after": "yesterday"},
        {"created_before": "1e400"},
        {"metadata": "x"},
        {"model": "a\0b"},
    ],
)
def test_a_list_that_makes_no_sense(api, params):
    assert api.get("/train", params=params).status_code in (400, 422)
    assert api.get("/api/sft/jobs", params=params).status_code == 400


# -- saved configurations


def test_a_saved_configuration_through_its_life(api):
    saved = api.post("/api/sft/configs", json={"name": "base", "config": SFT}).json()
    path = f"/api/sft/configs/{saved['config_id']}"

    api.put(path, json={"name": "base 2", "config": SFT | {"lora_r": 4}})
    changed = api.patch(path, json={"config": {"max_steps": 5}}).json()
    assert (changed["name"], changed["version"]) == ("base 2", 3)
    assert changed["config"] == SFT | {"lora_r": 4, "max_steps": 5}
    versions = api.get(f"{path}/versions").json()
    names = [(version["version"], version["name"]) for version in versions]
    assert names == [(1, "base"), (2, "base 2"), (3, "base 2")]
    assert versions[0]["config"] == SFT

    body = {"config_id": saved["config_id"], "config": {"lora_r": 2}, "metadata": {"from": "saved"}}
    job_id = api.post("/api/sft/train", json=body).json()["job_id"]
    assert api.delete(path).json() == {"message": f"Config {saved['config_id']} deleted"}
    for view in (api.get(f"/api/sft/jobs/{job_id}").json(), api.get(f"/train/{job_id}").json()):
        assert (view["config"]["lora_r"], view["config"]["max_steps"]) == (2, 5)
        assert (view["config_id"], view["config_version"], view["config_name"]) == (saved["config_id"], 3, "base 2")

    for gone in (api.get(path), api.delete(path), api.put(path, json={"name": "x", "config": {}})):
        assert (gone.status_code, gone.json()["code"]) == (404, "config_not_found")
    assert api.get(f"{path}/versions").status_code == 404
    assert api.post("/api/sft/train", json=body).status_code == 404
    assert saved["config_id"] not in [config["config_id"] for config in api.get("/api/sft/configs").json()]


def test_saved_configurations_page_by_page(api):
    before = len(api.get("/api/sft/configs").json())
    names = [f"page {number}" for number in range(3)]
    for name in names:
        api.post("/api/sft/configs", json={"name": name, "config": {}})

    page = api.get("/api/sft/configs", params={"limit": 2, "offset": before}).json()
    assert [config["name"] for config in page] == names[:2]
