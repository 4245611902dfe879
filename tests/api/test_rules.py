"""A rule between two fields holds in the OpenAPI document exactly where it holds for a request."""

from itertools import combinations
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from api.main import create_app
from api.request_fields import wire_fields
from api.sft_request import TrainBody
from api.training_request import TrainingRequest
from jobs.settings import Settings
from sft.config import SFTConfig
from sft.errors import TuneyardError

DOCUMENT = create_app(Settings()).openapi()
# One value of each field that is not its default, valid by itself or with the fields that it needs.
VALUES: dict[str, Any] = {
    "adapter_name": "helper",
    "adapter_path": "adapters/first",
    "dataset_text_field": "text",
    "device_map": "auto",
    "early_stopping_patience": 2,
    "eval_steps": 10,
    "gradient_checkpointing": True,
    "logging_backend": "wandb",
    "lora_name": "helper",
    "lora_target_modules": ["q_proj"],
    "lora_version": 3,
    "loraplus_lr_ratio": 16.0,
    "mask_history": True,
    "max_batch_tokens": 512,
    "max_samples": 5,
    "max_steps": 7,
    "metadata": {"team": "search"},
    "neftune_noise_alpha": 5.0,
    "num_devices": 2,
    "optimizer_type": "adafactor",
    "packing": True,
    "save_name": "helper-2",
    "shard_model": True,
    "template_name": "chatml",
    "tracking_backend": "wandb",
    "train_on_prompt": True,
    "use_dora": True,
    "use_lora": False,
    "use_qlora": True,
    "use_rslora": True,
    "validation_dataset": "held.jsonl",
    "validation_split": 0.2,
    "webhook_events": ["started"],
    "webhook_url": "https://example.com/hook",
}
NEEDED = {"base_model": "gpt2", "dataset_name": "rows.jsonl", "dataset_format": "alpaca"}


def find_differences(model: type[BaseModel], name: str, bodies: list[dict[str, Any]]) -> list[str]:
    """The bodies that the document takes and the model refuses, or the other way around."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    validator = Draft202012Validator(schema)
    verdicts = {str(body): (validator.is_valid(body), is_valid(model, body)) for body in bodies}
    assert {said for said, _ in verdicts.values()} == {True, False}, "rules of both outcomes are compared"
    return [f"{body}: documented {said}, taken {taken}" for body, (said, taken) in verdicts.items() if said != taken]


def is_valid(model: type[BaseModel], body: dict[str, Any]) -> bool:
    try:
        request = model.model_validate(body)
        if isinstance(request, TrainBody):
            request.to_spec(saved=None)
    except (ValidationError, TuneyardError):
        return False
    return True


def groups(names: list[str]) -> list[tuple[str, ...]]:
    """Every field by itself, every two, and every two beside what switches LoRA off or names an adapter."""
    pairs = [*combinations(names, 1), *combinations(names, 2)]
    return [*pairs, *(("lora_name", "lora_version", *pair) for pair in pairs if "lora_version" in names)]


def test_every_switch_and_every_optional_field_is_compared():
    fields = {*SFTConfig.model_fields, *wire_fields(TrainingRequest)}
    optional = {
        name for name in fields if name in SFTConfig.model_fields and SFTConfig.model_fields[name].default is None
    }
    switches = {name for name, field in SFTConfig.model_fields.items() if field.annotation is bool}

    apart = {"output_dir", "checkpoint_dir", "save_merged_model", "run_name"}
    assert {name for name in optional | switches if not name.startswith("wandb")} - apart <= set(VALUES)


def test_the_training_api_documents_its_rules():
    names = [name for name in VALUES if name in wire_fields(TrainingRequest)]
    bodies = [{name: VALUES[name] for name in group} for group in groups(names)]

    assert find_differences(TrainingRequest, "TrainingRequest", bodies) == []


@pytest.mark.parametrize("place", ["config", "beside"])
def test_the_sft_api_documents_its_rules(place: str):
    owner = SFTConfig if place == "config" else TrainBody
    names = [name for name in VALUES if name in owner.model_fields]
    given = [{name: VALUES[name] for name in group} for group in groups(names)]
    bodies = [{"config": NEEDED | values} if place == "config" else {"config": NEEDED} | values for values in given]

    assert find_differences(TrainBody, "TrainBody", bodies) == []
