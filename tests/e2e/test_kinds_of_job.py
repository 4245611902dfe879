"""Jobs of other kinds than one new adapter on one device: several devices, an earlier adapter, whole models."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.models.loading import quiet_transformers
from tasks.tracking import CONTEXT_TAG
from tests.conftest import wait_until
from tests.processes import find_processes

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

SMALL = {
    "dataset_version": "v1.1",
    "template": "chatml",
    "max_samples": 24,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "learning_rate": 1e-2,
}
TWO = SMALL | {"num_devices": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def on_two_devices(api, model, wait_for):
    """A job of two processes, run to its end, and how far it was while it trained."""
    body = TWO | {"model_name": model, "lora_name": "two", "save_merged_model": True, "num_epochs": 4}
    job_id = api.post("/train", json=body).json()["job_id"]
    midway = wait_for(job_id, lambda job: job["progress"] is not None)
    return wait_for(job_id), midway


def load(folder):
    """The model in this folder, as plain transformers loads it, and what it did not find or know there."""
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)


def test_a_job_on_two_devices_reports_and_registers_as_any_other(on_two_devices, stack, model, tmp_path, monkeypatch):
    job, midway = on_two_devices
    assert (job["status"], job["error"]) == ("completed", None)
    assert 0 < midway["progress"]["step"] <= midway["progress"]["total_steps"] == 24
    assert (job["progress"]["step"], job["progress"]["percent"]) == (24, 100)
    assert job["result"]["eval_loss"] < job["result"]["base_eval_loss"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.mlflow_tracking_uri)
    folder = download_artifacts(f"models:/two/{job['result']['model_version']}", dst_path=str(tmp_path))
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(load(stack.model_root / model)[0], folder)
    assert adapted.peft_config["default"].r == 8


def test_a_merged_model_lies_beside_the_adapter(on_two_devices):
    job, _ = on_two_devices
    merged = Path(job["result"]["merged_path"])
    assert merged == Path(job["output_path"]).with_name("merged")
    found, loading = load(merged)
    assert not isinstance(found, PeftModel)
    assert not any(loading.values())
    assert AutoTokenizer.from_pretrained(merged).eos_token == "<|im_end|>"


def test_a_job_of_several_datasets_reports_each_of_them(api, stack, model, wait_for):
    held = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n + 1)))} for n in range(6)]
    (stack.data_root / "held").mkdir(parents=True, exist_ok=True)
    (stack.data_root / "held" / "counts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    body = SMALL | {
        "model_name": model,
        "lora_name": "mixed",
        "dataset_version": [{"name": "v1.0", "weight": 0.5}, "handbook@v1.1"],
        "validation_dataset": ["handbook@v1.1", "held/counts.jsonl"],
        "eval_steps": 5,
    }
    job = wait_for(api.post("/train", json=body).json()["job_id"])
    assert (job["status"], job["error"]) == ("completed", None)
    assert job["config"]["dataset_version"][0] == {"name": "v1.0", "weight": 0.5}
    assert job["progress"]["total_steps"] == (12 + 24) / 4
    result, labels = job["result"], ["handbook_v1.1", "held_counts.jsonl"]
    taken = [(part["name"], part["taken"], part["left_out"]) for part in result["sources"]]
    assert taken[:2] == [("handbook@v1.0", 12, 12), ("handbook@v1.1", 24, 0)]
    assert taken[2:] == [("handbook@v1.1", None, None), ("held/counts.jsonl", None, None)]
    assert [part["eval_loss"] for part in result["sources"][:2]] == [None, None]
    told = [result["metrics"][f"eval_loss/{label}"] for label in labels]
    assert [part["eval_loss"] for part in result["sources"][2:]] == told
    assert min(told) < result["eval_loss"] < max(told)
    assert all(part["base_eval_loss"] > part["eval_loss"] for part in result["sources"][2:])

    client = MlflowClient(stack.mlflow_tracking_uri)
    version = client.search_model_versions("name = 'mixed'")[0]
    assert [one["weight"] for one in json.loads(version.tags["dataset_versions"])] == [0.5, 1.0, None, None]
    series = api.get(f"/train/{job['job_id']}/metrics").json()["series"]
    for label, last in zip(labels, told, strict=True):
        points = client.get_metric_history(version.run_id, f"eval_loss/{label}")
        assert {point.step for point in points} == {0, 5, 9}
        assert series[f"eval_loss/{label}"][-1] == [9, last]
    inputs = client.get_run(version.run_id).inputs.dataset_inputs
    contexts = sorted((data.dataset.name, {tag.key: tag.value for tag in data.tags}[CONTEXT_TAG]) for data in inputs)
    assert contexts == [
        ("handbook", "training"),
        ("handbook", "training, validation"),
        ("held/counts.jsonl", "validation"),
    ]
    assert job["job_id"] in [one["job_id"] for one in api.get("/train", params={"dataset": "handbook@v1.0"}).json()]


@pytest.mark.parametrize("door", ["lora_version", "adapter_path"])
def test_a_job_goes_on_from_an_earlier_adapter(api, model, wait_for, on_two_devices, door):
    earlier, _ = on_two_devices
    starts = {
        "lora_version": {"lora_name": "two", "lora_version": int(earlier["result"]["model_version"])},
        "adapter_path": {"adapter_path": earlier["output_path"]},
    }
    body = SMALL | {"model_name": model, "save_name": "two-next", "max_steps": 2, "learning_rate": 1e-4}
    job = wait_for(api.post("/train", json=body | starts[door]).json()["job_id"])

    assert (job["status"], job["error"]) == ("completed", None)
    assert job["result"]["model_name"] == "two-next"
    assert job["result"]["base_eval_loss"] == pytest.approx(earlier["result"]["eval_loss"], rel=1e-3)


def test_a_stopped_job_on_two_devices_keeps_its_last_step_and_leaves_no_process(api, model, wait_for):
    body = TWO | {"model_name": model, "max_samples": 200, "num_epochs": 1000, "save_steps": 1_000_000}
    job_id = api.post("/train", json=body).json()["job_id"]
    trained = wait_for(job_id, lambda job: job["progress"] is not None)["progress"]["step"]
    assert len(find_processes(job_id)) >= 4  # the flow, the launcher and two that train
    assert api.delete(f"/train/{job_id}").status_code == 200
    wait_until(lambda: find_processes(job_id) == [], 60)

    (kept,) = api.get(f"/train/{job_id}/checkpoints").json()["checkpoints"]
    assert (kept["complete"], kept["step"] >= trained) == (True, True)
    assert {"adapter_model.safetensors", "rng_state_0.pth", "rng_state_1.pth"} <= {
        path.name for path in Path(kept["path"]).iterdir()
    }


def test_a_whole_model_that_stops_early_is_done_and_registered(api, model, wait_for, stack, tmp_path, monkeypatch):
    body = SMALL | {"model_name": model, "lora_name": "whole", "use_lora": False, "num_epochs": 50}
    body |= {"early_stopping_patience": 1, "eval_steps": 2}
    job = wait_for(api.post("/train", json=body).json()["job_id"])

    assert (job["status"], job["error"]) == ("completed", None)
    progress, result = job["progress"], job["result"]
    assert result["stopped_early"] is True
    assert progress["step"] == result["metrics"]["steps"] < progress["total_steps"] == 300
    assert (progress["percent"], progress["eta_seconds"]) == (100, 0)
    assert result["eval_loss"] == pytest.approx(result["metrics"]["best_eval_loss"], rel=1e-5)
    assert result["eval_loss"] < result["base_eval_loss"]
    assert result["merged_path"] is None

    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.mlflow_tracking_uri)
    folder = download_artifacts(f"models:/whole/{result['model_version']}", dst_path=str(tmp_path))
    (trained, loading), (base, _) = load(folder), load(stack.model_root / model)
    assert not any(loading.values())
    assert not (Path(folder) / "adapter_config.json").exists()
    assert (trained.get_input_embeddings().weight - base.get_input_embeddings().weight).abs().max() > 1e-3
