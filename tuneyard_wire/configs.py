"""Responses for saved configurations."""

from typing import Any

from pydantic import Field

from tuneyard_wire.response import Id, Moment, Response, with_example

_VERSION: dict[str, Any] = {
    "config_id": "0b8d3c52-6a0e-4a53-9a4e-3c1d3d1f6a77",
    "name": "my_config",
    "config": {
        "base_model": "gpt2",
        "dataset_name": "tatsu-lab/alpaca",
        "dataset_format": "alpaca",
        "max_steps": 100,
        "output_dir": "./outputs/sft",
        "use_lora": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "learning_rate": 2e-4,
        "batch_size": 4,
    },
    "version": 1,
    "created_at": "2026-04-05T16:20:51.118000+00:00",
}


class ConfigVersion(Response):
    """A version of a saved configuration, complete or partial, as it was saved."""

    model_config = with_example(**_VERSION)

    config_id: Id
    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    version: int
    created_at: Moment


class SavedConfig(ConfigVersion):
    """The current version of a saved configuration."""

    model_config = with_example(**_VERSION, updated_at="2026-04-05T16:20:51.118000+00:00")

    updated_at: Moment
