"""Two API servers on one stack: whichever a client asks, the answer is the same."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api.sft_job_manager import SFTJobManager
from app.sft import SFTConfig
from tests.conftest import wait_until
from tests.e2e.line import NOBODY, ask_together, clear_line

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

BODY = {"model_name": "nobody/pair", "template": "chatml", "max_steps": 1}
SFT = {"base_model": "nobody/pair", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}


@pytest.fixture(scope="module")
def pair(make_api, tmp_path_factory):
    """Clients of two servers, which keep their figures for Prometheus together."""
    figures = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path_factory.mktemp("figures"))}
    return [make_api(**figures).start().client for _ in range(2)]


@pytest.fixture(autouse=True)
def empty(paused, api):
    """Nothing starts while these tests run, and every one begins with an empty line."""
    clear_line(api)


def alternate(pair, count, request):
    """`request(client, index)` that many times at the same moment, on one server and the other in turn."""
    return ask_together(count, lambda index: request(pair[index % 2], index))


def test_of_twenty_posts_that_want_no_queue_one_is_taken(pair):
    answers = alternate(pair, 20, lambda client, _: client.post("/train?strategy=reject", json=BODY))

    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
    assert [client.get("/queue").json()["queue_length"] for client in pair] == [1, 1]


def test_twenty_posts_with_one_key_make_one_job_and_get_one_answer(pair):
    headers = {"Idempotency-Key": "side by side"}
    answers = alternate(pair, 20, lambda client, _: client.post("/train", json=BODY, headers=headers))

    assert [answer.status_code for answer in answers] == [200] * 20
    assert len({answer.text for answer in answers}) == 1
    job_id = answers[0].json()["job_id"]
    assert [client.get("/queue").json()["queued_jobs"] for client in pair] == [[job_id], [job_id]]
    others = [client.post("/train", json=BODY | {"max_steps": 2}, headers=headers) for client in pair]
    assert [answer.status_code for answer in others] == [422, 422]


def test_twenty_posts_stand_at_positions_one_to_twenty_and_move_up_on_both(pair):
    answers = [answer.json() for answer in alternate(pair, 20, lambda client, _: client.post("/train", json=BODY))]

    def position(answer):
        return int(answer["message"].removeprefix("Training job added to queue at position "))

    in_order = [answer["job_id"] for answer in sorted(answers, key=position)]
    assert sorted(map(position, answers)) == [*range(1, 21)]
    assert [client.get("/queue").json()["queued_jobs"] for client in pair] == [in_order, in_order]
    pair[0].delete(f"/train/{in_order[4]}")
    for client in pair:
        left = in_order[:4] + in_order[5:]
        assert client.get("/queue").json()["queued_jobs"] == left
        listed = {job["job_id"]: job["queue_position"] for job in client.get("/train").json()}
        assert [listed[job_id] for job_id in left] == [*range(1, 20)]


def test_what_one_makes_and_ends_the_other_shows_at_once_in_both_dialects(pair, stack):
    one, other = pair
    made = [
        one.post("/train", json=BODY).json()["job_id"],
        one.post("/api/sft/train", json={"config": SFT}).json()["job_id"],
    ]
    with SFTJobManager(stack) as manager:
        made.append(manager.create_job(SFTConfig(**SFT)))
        assert [other.get(f"/api/sft/jobs/{job_id}").json() for job_id in made] == [*map(manager.get_job_status, made)]

    for job_id, word in zip(made, ("queued", "queued", "created"), strict=True):
        assert other.get(f"/train/{job_id}").json()["status"] == word
    listed, same = ([job["job_id"] for job in client.get("/train", params={"limit": 10}).json()] for client in pair)
    assert listed == same
    assert {*made} <= {*listed}
    for job_id in made:
        assert other.delete(f"/train/{job_id}").status_code == 200
        assert one.delete(f"/train/{job_id}").status_code == 400
        assert one.get(f"/api/sft/jobs/{job_id}").json()["status"] == "stopped"
    assert one.get("/queue").json() == other.get("/queue").json() == NOBODY


def test_of_two_who_cancel_a_job_at_once_both_hear_that_it_is_and_the_webhook_is_called_once(pair, receiver):
    job_id = pair[0].post("/train", json=BODY | {"webhook_url": receiver.url}).json()["job_id"]
    answers = alternate(pair, 8, lambda client, _: client.post(f"/api/sft/jobs/{job_id}/stop"))

    assert [answer.json() for answer in answers] == [{"message": f"Job {job_id} stopped"}] * 8
    assert receiver.wait(job_id)["status"] == "cancelled"
    time.sleep(1)
    assert [body["status"] for body in receiver.received if body["job_id"] == job_id] == ["cancelled"]


def test_no_edit_of_a_saved_configuration_is_lost(pair):
    saved = pair[0].post("/api/sft/configs", json={"name": "shared", "config": {}}).json()
    path = f"/api/sft/configs/{saved['config_id']}"
    fields = [name for name in SFTConfig.model_fields if name not in ("lora_target_modules", "adapter_path")][:10]
    alternate(pair, 10, lambda client, index: client.patch(path, json={"config": {fields[index]: f"value {index}"}}))

    shown = [client.get(path).json() for client in pair]
    assert shown[0] == shown[1]
    assert (shown[0]["version"], shown[0]["config"]) == (
        11,
        {name: f"value {index}" for index, name in enumerate(fields)},
    )
    versions = [client.get(f"{path}/versions").json() for client in pair]
    assert versions[0] == versions[1]
    assert [(one["version"], len(one["config"])) for one in versions[0]] == [*zip(range(1, 12), range(11), strict=True)]
    pair[1].delete(path)
    assert pair[0].get(path).status_code == 404


def test_prometheus_gets_the_figures_of_both_from_either(pair):
    def count(client):
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        route = {"method": "GET", "route": "/queue", "status": "200"}
        return sum(
            sample.value
            for sample in samples
            if (sample.name, sample.labels) == ("tuneyard_http_requests_total", route)
        )

    before = count(pair[0])
    for client in pair:
        client.get("/queue")
    wait_until(lambda: [count(client) for client in pair] == [before + 2, before + 2], 20)
