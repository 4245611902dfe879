"""The Training API's words translate to a job and back."""

import pytest
from pydantic import ValidationError

from api.training_request import TrainingRequest, config_view


def test_documented_defaults():
    spec = TrainingRequest().to_spec("handbook")

    assert spec.config.base_model == "Qwen/Qwen2.5-1.5B-Instruct"
    assert spec.config.dataset_name == "handbook@v1.0"
    assert spec.config.template_name == "qwen"
    assert spec.config.max_seq_length == 2048
    assert (spec.config.batch_size, spec.config.gradient_accumulation_steps) == (1, 8)
    assert (spec.config.learning_rate, spec.config.num_epochs) == (2.0e-5, 3.0)
    assert spec.tracking_backend == "mlflow"


def test_the_documented_body_with_all_parameters_comes_back_in_the_status():
    body = {
        "model_name": "Qwen/Qwen2.5-1.5B-Instruct",
        "dataset_version": "v1.0",
        "template": "qwen",
        "cutoff_len": 2048,
        "max_samples": 1000,
        "batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2.0e-5,
        "num_epochs": 3.0,
        "logging_backend": "wandb",
        "webhook_url": "https://example.com/webhook",
    }

    view = config_view(TrainingRequest(**body).to_spec("handbook"), "handbook")

    expected = body | {"tracking_backend": "wandb"}
    del expected["logging_backend"]
    assert {key: view[key] for key in expected} == expected


def test_a_learning_rate_may_be_a_string():
    assert TrainingRequest(learning_rate="2.0e-5").to_spec("handbook").config.learning_rate == 2.0e-5


@pytest.mark.parametrize(
    ("dataset_version", "dataset_name"),
    [("v1.1", "handbook@v1.1"), ("support@main", "support@main"), ("3f2c1ab", "handbook@3f2c1ab")],
)
def test_a_bare_revision_means_the_default_dataset(dataset_version, dataset_name):
    spec = TrainingRequest(dataset_version=dataset_version).to_spec("handbook")

    assert spec.config.dataset_name == dataset_name
    assert config_view(spec, "handbook")["dataset_version"] == dataset_version


def test_start_from_a_registered_adapter_and_save_under_another_name():
    spec = TrainingRequest(lora_name="support", lora_version=3, save_name="support-next").to_spec("handbook")

    assert spec.config.adapter_path == "models:/support/3"
    assert spec.adapter_name == "support-next"
    view = config_view(spec, "handbook")
    assert (view["lora_name"], view["lora_version"], view["save_name"]) == ("support", "3", "support-next")


def test_metadata_goes_with_the_job_and_priority_does_not():
    request = TrainingRequest(metadata={"team": "{{ x }}"}, priority="high")
    spec = request.to_spec("handbook")

    assert (spec.metadata, request.priority) == ({"team": "{{ x }}"}, "high")
    assert "priority" not in spec.to_parameters()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"learning_rate": "fast"}, ["learning_rate"]),
        ({"learning_rate": 0}, ["learning_rate", "greater than 0"]),
        ({"num_epochs": "nan"}, ["num_epochs", "finite"]),
        ({"lora_r": 0}, ["lora_r", "greater than 0"]),
        ({"template": "qwem"}, ["qwem", "did you mean qwen"]),
        ({"lora_version": 2}, ["lora_version needs lora_name"]),
        ({"lora_name": "../x"}, ["adapter_name", "../x"]),
        ({"webhook_url": "ftp://example.com"}, ["webhook_url", "http"]),
        ({"epochs": 3}, ["epochs"]),
        ({"metadata": {"__prefect_kind": "json"}}, ["metadata", "__prefect_kind", "reserved"]),
        ({"priority": "urgent"}, ["priority", "high", "low"]),
    ],
)
def test_a_bad_body_is_refused_by_name(body, words):
    with pytest.raises(ValidationError) as refusal:
        TrainingRequest(**body)

    for word in words:
        assert word in str(refusal.value)
