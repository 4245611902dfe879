"""Injects an adapter with PEFT on trial, reads which layers it adapts, and removes it again."""

import copy
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from sft.errors import is_of_machine
from sft.models.quantized import count_weights

PREFIX = "base_model.model."  # of the weights' names in an adapter's file


class AdaptedLayers(NamedTuple):
    """Names of the adapted layers and stacked parameters, and the number of trained weights.

    `lost` are adapted layers whose saved weights PEFT does not load back. `saved` has the names and shapes of the
    weights in an adapter's file; `read_layers` leaves both empty.
    """

    modules: set[str]
    parameters: set[str]
    trainable: int
    lost: frozenset[str] = frozenset()
    saved: tuple[tuple[str, list[int]], ...] = ()


def try_settings(model: nn.Module, settings: LoraConfig) -> tuple[AdaptedLayers | None, Exception | None]:
    """What these settings adapt, or PEFT's error. The model, which may be empty, is left unchanged."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about transposed layers and targets that match nothing
            inject_adapter_in_model(copy.deepcopy(settings), model, low_cpu_mem_usage=True)
        return read_layers(model)._replace(lost=find_lost(model), saved=tuple(_list_saved(model))), None
    except Exception as error:  # any error of PEFT means that these settings do not work
        if is_of_machine(error):
            raise
        return None, error
    finally:
        _take_off(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)


def read_layers(model: nn.Module) -> AdaptedLayers:
    """Find the layers of a model that have an adapter."""
    modules: set[str] = set()
    parameters: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            (parameters if isinstance(module, ParamWrapper) else modules).add(_name_plainly(name, module))
    trainable = sum(count_weights(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return AdaptedLayers(modules, parameters, trainable)


def find_lost(model: nn.Module) -> frozenset[str]:
    """Names of the adapted layers that PEFT does not load back from what it saves. Leaves the model's state unchanged.

    If transformers renames the weights of a model's files, PEFT also renames those of the adapter, which have the
    model's names already: some then match no layer and are ignored.
    """
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    in_file = {PREFIX + name.removeprefix(PREFIX): value.detach().clone() for name, value in saved.items()}
    missing = {name.removeprefix(PREFIX) for name in set_peft_model_state_dict(model, in_file).missing_keys}
    places = {name.partition(".lora_")[0] for name in missing if ".lora_" in name}
    return frozenset(
        _name_plainly(name, module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and name.removeprefix(PREFIX) in places
    )


def explain_misfit(expected: dict[str, list[int]], stored: dict[str, list[int]]) -> str | None:
    """Explain which layers only the adapter's file or only the model has, which PEFT ignores; None if none."""
    found = {name: shape for name, shape in stored.items() if ".lora_" in name}
    if strange := sorted(found.keys() - expected.keys()):
        return f"the model has no place for {len(strange)} of its {len(found)} weights, {strange[0]} for one"
    if missing := sorted(expected.keys() - found.keys()):
        return f"its file lacks {len(missing)} of the {len(expected)} weights, {missing[0]} for one"
    if other := sorted(name for name, shape in found.items() if shape != expected[name]):
        name = other[0]
        saved, here = (", ".join(map(str, shapes[name])) for shapes in (found, expected))
        return f"{name} is of shape ({saved}) in the adapter and of shape ({here}) for this model"
    return None


def _list_saved(model: nn.Module) -> Iterator[tuple[str, list[int]]]:
    for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        if ".lora_" in name:
            yield PREFIX + name.removeprefix(PREFIX), list(value.shape)  # of a linear layer: A [r, I], B [O, r]


def _name_plainly(name: str, module: LoraLayer) -> str:
    plain = name.removeprefix(PREFIX).replace(".base_layer", "")
    return f"{plain}.{module.parameter_name}" if isinstance(module, ParamWrapper) else plain


def _take_off(model: nn.Module) -> None:
    """Replace every adapted layer with its base layer."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and ".base_layer" not in name:
            parent, _, short = name.rpartition(".")
            setattr(model.get_submodule(parent), short, module.get_base_layer())
    if "peft_config" in vars(model):
        del model.peft_config
