"""The Training API's words translate to a job and back."""

import pytest
from pydantic import ValidationError

from api.training_request import TrainingRequest, config_view
from sft.errors import InvalidConfig
from sft.explanations import explain_validation_error


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
        "webhook_events": ["started", "checkpoint"],
    }

    view = config_view(TrainingRequest(**body).to_spec("handbook"), "handbook")

    expected = body | {"tracking_backend": "wandb"}
    del expected["logging_backend"]
    assert {key: view[key] for key in expected} == expected


def test_the_options_of_a_job_are_shown_in_the_order_of_their_declaration():
    view = config_view(TrainingRequest(model_name="m").to_spec("handbook"), "handbook")
    assert [*view][-3:] == ["tracking_backend", "webhook_url", "webhook_events"]


def test_a_learning_rate_may_be_a_string():
    assert TrainingRequest(learning_rate="2.0e-5").to_spec("handbook").config.learning_rate == 2.0e-5


@pytest.mark.parametrize(
    ("backends", "backend"),
    [
        ({}, "mlflow"),
        ({"logging_backend": "wandb"}, "wandb"),
        ({"tracking_backend": "wandb"}, "wandb"),
        ({"tracking_backend": "mlflow", "logging_backend": "wandb"}, "mlflow"),
    ],
)
def test_the_tracking_backend_has_two_names_and_its_own_wins(backends, backend):
    assert TrainingRequest(**backends).to_spec("handbook").tracking_backend == backend


def test_whole_numbers_may_have_a_point_and_modules_be_one_name():
    config = TrainingRequest(batch_size=4.0, lora_target_modules="q_proj").to_spec("handbook").config

    assert (config.batch_size, config.lora_target_modules) == (4, ("q_proj",))


@pytest.mark.parametrize(
    ("dataset_version", "dataset_name"),
    [("v1.1", "handbook@v1.1"), ("support@main", "support@main"), ("3f2c1ab", "handbook@3f2c1ab")],
)
def test_a_bare_revision_means_the_default_dataset(dataset_version, dataset_name):
    spec = TrainingRequest(dataset_version=dataset_version).to_spec("handbook")

    assert spec.config.dataset_name == dataset_name
    assert config_view(spec, "handbook")["dataset_version"] == dataset_version


def test_several_versions_with_weights_come_back_as_they_were_meant():
    body = {"dataset_version": ["v1.0", {"name": "chat@v2", "weight": 0.5}], "validation_dataset": "held@v1"}
    spec = TrainingRequest(**body).to_spec("handbook")
    assert [(source.name, source.weight) for source in spec.config.sources] == [("handbook@v1.0", 1), ("chat@v2", 0.5)]
    assert (spec.config.validation_dataset, spec.config.validation_split) == ("held@v1", 0)
    assert {"dataset:handbook@v1.0", "dataset:chat", "dataset:chat@v2"} <= {*spec.tags()}
    assert spec.registered_name == "qwen2.5-1.5b-instruct-handbook-chat"
    view = config_view(spec, "handbook")
    assert view["dataset_version"] == [{"name": "v1.0", "weight": 1.0}, {"name": "chat@v2", "weight": 0.5}]
    assert TrainingRequest(**{name: view[name] for name in body} | {"validation_split": 0}).to_spec("handbook") == spec


def test_two_names_of_one_version_are_refused_under_the_apis_own_name():
    with pytest.raises(InvalidConfig, match=r"^dataset_version: must name each dataset once, 'handbook@v1.0' is at"):
        TrainingRequest(dataset_version=["v1.0", "handbook@v1.0"]).to_spec("handbook")


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
        ({"learning_rate": "2e10"}, ["learning_rate", "number greater than 0"]),
        ({"learning_rate": True}, ["learning_rate", "must be a number, got True"]),
        ({"num_epochs": float("nan")}, ["num_epochs", "finite"]),
        ({"num_epochs": "3"}, ["num_epochs: must be a number, got '3'"]),
        ({"batch_size": "4"}, ["batch_size: must be a number, got '4'"]),
        ({"eval_steps": False}, ["eval_steps: must be a number, got False"]),
        ({"batch_size": 4.5}, ["batch_size", "whole number"]),
        ({"lora_name": "a", "lora_version": True}, ["lora_version: must be a number, got True"]),
        ({"use_lora": 0}, ["use_lora", "true or false"]),
        ({"gradient_checkpointing": "yes"}, ["gradient_checkpointing", "'auto'"]),
        ({"seed": 2**32}, ["seed", "less than 4294967296"]),
        ({"cutoff_len": 2**31}, ["cutoff_len", "at most 2147483647"]),
        ({"weight_decay": 1e30}, ["weight_decay", "at most 1000000000"]),
        ({"lora_r": 0}, ["lora_r", "greater than 0"]),
        ({"template": "qwem"}, ["qwem", "did you mean qwen"]),
        ({"lora_version": 2}, ["lora_version needs lora_name"]),
        ({"lora_name": "../x"}, ["lora_name", "must start with a letter or digit", "../x"]),
        ({"save_name": "a b"}, ["save_name", "may contain letters, digits"]),
        ({"model_name": " "}, ["model_name: must not be blank"]),
        ({"dataset_version": " "}, ["dataset_version: must not be blank"]),
        ({"dataset_version": "a\0b@v1"}, ["dataset_version must contain neither NUL characters"]),
        ({"webhook_url": "ftp://example.com"}, ["webhook_url", "http"]),
        ({"webhook_url": "https://exa mple.com"}, ["webhook_url", "%XX"]),
        ({"webhook_url": "https://example.com/%zz"}, ["webhook_url", "%XX"]),
        ({"webhook_events": ["started"]}, ["webhook_events needs webhook_url"]),
        ({"epochs": 3}, ["epochs is not a known field; did you mean num_epochs?"]),
        ({"metadata": {"__prefect_kind": "json"}}, ["metadata", "__prefect_kind", "reserved"]),
        ({"priority": "urgent"}, ["priority", "high", "low"]),
    ],
)
def test_a_bad_body_is_refused_by_name(body, words):
    with pytest.raises(ValidationError) as refusal:
        TrainingRequest(**body)

    told = explain_validation_error(refusal.value, TrainingRequest)
    for word in words:
        assert word in told
