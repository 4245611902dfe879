"""What is known to fail a job: beside the answer to its submission, or with `strict` in its place."""

import time

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from tests.live_service import pause_jobs

pytestmark = pytest.mark.stack

NOWHERE = "nobody/warned"
SFT = {"base_model": NOWHERE, "dataset_name": "handbook@v1.0", "dataset_format": "auto"}
BODIES = {"/train": {"model_name": NOWHERE}, "/api/sft/train": {"config": SFT}}
KEYS = {"/train": {"job_id", "status", "message"}, "/api/sft/train": {"job_id", "status"}}


@pytest.fixture(scope="module")
def api(stack):
    pause_jobs(stack)
    client = TestClient(create_app(stack))
    yield client
    for job in client.get("/train", params={"model": NOWHERE}).json():
        client.delete(f"/train/{job['job_id']}")
    pause_jobs(stack, is_paused=False)


def count_jobs(api):
    return len(api.get("/train", params={"model": NOWHERE}).json())


@pytest.mark.parametrize("path", BODIES)
def test_a_documented_request_keeps_its_answer_with_warnings_beside_it(api, path):
    answer = api.post(path, json=BODIES[path])
    told = answer.json()

    assert (answer.status_code, set(told)) == (200, KEYS[path] | {"warnings"})
    (warning,) = told["warnings"]
    assert warning["code"] == "model_not_found"
    name = "model_name" if path == "/train" else "base_model"
    assert warning["message"].startswith(f"{name} '{NOWHERE}' is neither in the model root (")
    assert "put its files into" in warning["message"]


@pytest.mark.parametrize("path", BODIES)
def test_strict_refuses_and_makes_no_job(api, path):
    before = count_jobs(api)
    api.post(f"{path}?strict=true", json=BODIES[path])  # the first one asks for the Hub's address
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        answer = api.post(f"{path}?strict=true", json=BODIES[path])
        seconds.append(time.monotonic() - began)

    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
    assert answer.json()["detail"].endswith("To submit the job anyway, turn strict off (?strict=false, --no-strict)")
    assert count_jobs(api) == before
    assert min(seconds) < 1  # 0.3 where nothing else runs


@pytest.mark.parametrize(
    ("field", "status", "code", "told"),
    [
        (
            {"dataset_version": "v9"},
            404,
            "dataset_not_found",
            "dataset_version 'v9' is not a revision in the dataset reg",
        ),
        ({"dataset_version": "nope@v1.0"}, 404, "dataset_not_found", "'nope@v1.0' is not in the dataset registry"),
        (
            {"dataset_version": "/data/acme.jsonl"},
            404,
            "dataset_not_found",
            "'/data/acme.jsonl' looks like a file, not a revision",
        ),
        ({"use_qlora": True}, 422, "invalid_config", "use_qlora needs a CUDA device and no worker has one"),
        ({"num_devices": 4096}, 422, "invalid_config", "num_devices is 4096, but there is no GPU"),
        ({"output_dir": "/usr/share/x"}, 422, "invalid_config", "output_dir must be in one of "),
        (
            {"lora_name": "nobody", "lora_version": 3},
            404,
            "model_not_found",
            "lora_version 'models:/nobody/3' is not in",
        ),
        ({"adapter_path": "nowhere"}, 404, "model_not_found", "adapter_path 'nowhere' is not a folder with an adapter"),
    ],
)
def test_every_finding_is_told(api, stack, field, status, code, told):
    warnings = api.post("/train", json=BODIES["/train"] | field).json()["warnings"]
    (found,) = [warning for warning in warnings[1:] if warning["code"] == code]
    assert told in found["message"]
    detail = api.post("/train?strict=true", json=BODIES["/train"] | field).json()["detail"]
    assert found["message"] in detail.splitlines()


@pytest.mark.parametrize("path", BODIES)
def test_a_replay_gets_the_same_answer_whatever_has_become_of_the_cause(api, stack, path):
    headers = {"Idempotency-Key": f"warned {path}"}
    refused = api.post(f"{path}?strict=true", json=BODIES[path], headers=headers)
    first = api.post(path, json=BODIES[path], headers=headers)
    assert (refused.status_code, first.status_code, len(first.json()["warnings"])) == (404, 200, 1)

    folder = stack.model_root / NOWHERE
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"one")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    try:
        assert api.post(path, json=BODIES[path], headers=headers).json() == first.json()
        assert api.post(f"{path}?strict=true", json=BODIES[path], headers=headers).json() == first.json()
        assert set(api.post(path, json=BODIES[path]).json()) == KEYS[path]
    finally:
        for file in (*folder.iterdir(),):
            file.unlink()
        folder.rmdir()
    assert api.post(f"{path}?strict=true", json=BODIES[path], headers=headers).json() == first.json()


def test_strict_is_a_truth_value(api):
    answer = api.post("/train?strict=perhaps", json=BODIES["/train"])
    assert (answer.status_code, answer.json()["detail"]) == (422, "strict: must be true or false, got 'perhaps'")
