"""The adapter that training starts from: a new one, or an earlier one to go on from."""

import json
from pathlib import Path

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from sft.adaptation import Adaptation, describe_start, plan_adaptation
from sft.config import SFTConfig
from sft.errors import InvalidConfig, ModelNotFound
from sft.quantized import count_weights


def add_adapter(model: PreTrainedModel, config: SFTConfig) -> tuple[PreTrainedModel | PeftModel, Adaptation]:
    """What the trainer starts from: the model as it is, or with an earlier adapter to go on from.

    A new adapter is made by the trainer, of the `settings` in what is returned beside the model.

    Raises:
        InvalidConfig: target modules the model does not have, or an adapter of another model.
        ModelNotFound: the folder of `adapter_path` holds no adapter.
        ModelNotSupported: no layer of the model can be adapted.
    """
    if not config.use_lora:
        return model, Adaptation(None, sum(count_weights(parameter) for parameter in model.parameters()), {})
    if config.adapter_path:
        adapted = _load_start(model, config, Path(config.adapter_path))
        return adapted, describe_start(adapted)
    return model, plan_adaptation(model, config)


def plan_adapter(model: PreTrainedModel, config: SFTConfig) -> Adaptation:
    """As `add_adapter`, of a model that may be empty; an earlier adapter that is not here counts as a new one."""
    folder = Path(config.adapter_path) if config.adapter_path else None
    if folder is not None and (folder / "adapter_config.json").is_file():
        _check_kind(folder)
        return describe_start(model, LoraConfig.from_pretrained(str(folder)))
    return add_adapter(model, config.model_copy(update={"adapter_path": None}))[1]


def _load_start(model: PreTrainedModel, config: SFTConfig, folder: Path) -> PeftModel:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelNotFound(f"adapter_path {folder} has no {name}; name the folder of a saved adapter")
    _check_kind(folder)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidConfig(f"adapter_path {folder} does not fit base_model {config.base_model}: {reason}") from error
    for adapter in adapted.peft_config.values():
        _check_start(config, adapter)
        adapter.base_model_name_or_path = model.name_or_path  # an id would be looked up at each checkpoint
    return adapted


def _check_kind(folder: Path) -> None:
    """Only LoRA: other kinds of adapters name models, tokenizers and modules that PEFT would load with them."""
    try:
        stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind, needs_module = stored.get("peft_type"), bool(stored.get("megatron_config"))
    except (ValueError, AttributeError) as error:
        raise InvalidConfig(f"adapter_path {folder} has no adapter_config.json that can be read: {error}") from error
    if kind != "LORA" or needs_module:
        what = "it names a module to import (megatron_config)" if needs_module else f"its peft_type is {kind!r}"
        raise InvalidConfig(f"adapter_path {folder} is no plain LoRA adapter: {what}; name another one")


def _check_start(config: SFTConfig, adapter: LoraConfig) -> None:
    """An adapter to start from keeps its own shape; what asks for another kind can't be had."""
    for name, what in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")):
        if getattr(config, name) and not getattr(adapter, name, False):
            raise InvalidConfig(
                f"{name} is true, but the adapter in adapter_path was made without {what} and keeps its kind; "
                f"set {name} to false or start a new adapter"
            )
