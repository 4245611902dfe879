"""Which models and adapters `shard_model` goes with: those whose frozen weights alone are split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel

from sft.adapting.adapter_files import SETTINGS, STARTS_BESIDE
from sft.adapting.adapters import plan_adapter
from sft.config import SFTConfig
from sft.errors import InvalidConfig
from sft.models.experts import drops_layers
from sft.models.layer_stack import get_stack

# PEFT's settings that train or read the base model's own weights, with the values that do not.
OWN_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "target_parameters": (None, []),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "init_lora_weights": (None, True, False, *STARTS_BESIDE),
}


def check_sharding(build: Callable[[], PreTrainedModel], config: SFTConfig) -> None:
    """Check that `shard_model`, where it is set, goes with this model and adapter, before weights are loaded.

    Args:
        build: makes the model, which may be on the meta device; called only if `shard_model` is set.

    Raises:
        InvalidConfig: it does not.
    """
    if not config.shard_model:
        return
    empty = build()
    subject = f"base_model {config.base_model}"
    get_stack(empty, subject)
    if drops_layers(empty.config):
        raise InvalidConfig(
            f"shard_model can't split {subject}, whose config.json drops layers at random (layerdrop), other ones in "
            "each process; set that to 0 there, or shard_model to false"
        )
    settings, remedy = plan_adapter(empty, config).settings, "name other layers in lora_target_modules"
    folder = Path(config.adapter_path) if config.adapter_path else None
    if folder is not None and (folder / SETTINGS).is_file():
        settings, remedy = LoraConfig.from_pretrained(str(folder)), "start a new adapter"
    for name, allowed in OWN_WEIGHTS.items():
        if (value := getattr(settings, name, None)) not in allowed:
            raise InvalidConfig(
                f"shard_model does not go with an adapter whose {name} is {value!r:.100}, which needs whole weights of "
                f"the base model; {remedy}, or set shard_model to false"
            )
