"""Builds a merged model without weights: the base model's layers, and PEFT's, which will merge into them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from sft.adapting.adapter_files import STARTS_BESIDE
from sft.models.loading import quiet_transformers
from sft.models.model_class import build_empty
from sft.models.weight_names import read_empty
from sft.models.weight_reader import Unit, convert

META = torch.device("meta")
Place = tuple[Any, list[tuple[nn.Module, str]]]  # a tensor, and all modules and attributes that hold it


class Unmergeable(Exception):
    """This model or adapter can't be merged layer by layer."""


def build_base(path: Path, subject: str) -> PreTrainedModel:
    """The base model without weights, with what transformers notes when it loads the files."""
    empty = build_empty(path, subject)
    with quiet_transformers():
        model: PreTrainedModel = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=read_empty(path, subject),
            device_map={"": "meta"},
            dtype=torch.float32,
        )
    return model


def settle_names(model: PreTrainedModel, units: list[Unit], shapes: dict[str, tuple[int, ...]]) -> list[Unit]:
    """Find all names that a unit becomes, by converting empty tensors."""
    found = []
    for unit in units:
        empty = {name: torch.empty(shapes[name], device=META) for name, _ in unit.sources}
        found.append(unit._replace(names=tuple(convert(model, unit, empty))))
    return found


def wrap(model: PreTrainedModel, adapter_dir: Path) -> dict[str, Any]:
    """Load the adapter, and take its layers out of the model again: returns them by their place in the model.

    They keep the model's own layers, so that what they merge is in the model. Modules that an adapter has as a whole
    stay in the model in place of its own.
    """
    adapter = LoraConfig.from_pretrained(str(adapter_dir))
    start = adapter.init_lora_weights
    if isinstance(start, str) and start not in STARTS_BESIDE:
        raise Unmergeable(f"an adapter that started by {start} changes the base model's weights")
    mapping = getattr(model, "_checkpoint_conversion_mapping", None)  # as PeftModel.from_pretrained does
    adapted = PeftModel(model, adapter, low_cpu_mem_usage=True)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):  # the adapter stays here, though the layer has no device yet
            module._move_adapter_to_device_of_base_layer = _stay
    weights = load_peft_weights(str(adapter_dir), device="cpu", key_mapping=mapping or None)
    set_peft_model_state_dict(adapted, weights, low_cpu_mem_usage=True)
    adapted.base_model._cast_adapter_dtype(adapter_name=adapted.active_adapter)
    if any(tensor.device == META for name, tensor in adapted.named_parameters() if ".lora_" in name):
        raise Unmergeable("the adapter's file lacks some of its weights")
    wrappers: dict[str, Any] = {}
    for name, module in list(model.named_modules()):
        is_wrapper = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        if is_wrapper and not any(name.startswith(f"{outer}.") for outer in wrappers):
            wrappers[name] = module
    for name, wrapper in wrappers.items():
        parent, _, short = name.rpartition(".")
        setattr(model.get_submodule(parent), short, take_out(wrapper, merge=False))
    return wrappers


def _stay(*_: Any, **__: Any) -> None:
    """Do not move an adapter."""


def take_out(wrapper: Any, merge: bool) -> nn.Module:
    """The layer below one of PEFT's, merged or not, as PEFT's own unloading finds it."""
    if hasattr(wrapper, "unload_and_optionally_merge_module"):
        layer: nn.Module = wrapper.unload_and_optionally_merge_module(merge=merge, safe_merge=False, adapter_names=None)
        return layer
    if merge:
        wrapper.merge()
    below: nn.Module = wrapper.get_base_layer()
    return below


def settle_ties(model: PreTrainedModel) -> None:
    """Write into the configuration that embeddings and head are no longer one table, as PEFT does after merging."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    tables = [getattr(layer, "weight", None) for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    if None not in tables and tables[0] is not tables[1]:
        model.config.tie_word_embeddings = False


def list_places(model: nn.Module) -> dict[str, Place]:
    """For each name of the state: the tensor, and all modules and attributes that hold it."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for short, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or short in module._non_persistent_buffers_set:
                continue
            held = owners.setdefault(id(tensor), [])
            if not any(one is module and name == short for one, name in held):
                held.append((module, short))
            found[f"{path}.{short}" if path else short] = tensor
    names = model.state_dict().keys()
    if names != found.keys():
        raise Unmergeable("the model has a state beside its weights")
    return {name: (found[name], owners[id(found[name])]) for name in names}
