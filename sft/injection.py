"""What PEFT makes of its settings in a model, tried and taken off again."""

import copy
import warnings
from typing import NamedTuple

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from sft.quantized import count_weights


class AdaptedLayers(NamedTuple):
    """Names of the layers and of the stacked parameters that have an adapter, and how many weights that trains."""

    modules: set[str]
    parameters: set[str]
    trainable: int


def try_settings(model: nn.Module, settings: LoraConfig) -> tuple[AdaptedLayers | None, Exception | None]:
    """What these settings adapt, or PEFT's error. The model, which may be empty, is left as it was."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that lie the other way, of targets that match nothing
            inject_adapter_in_model(copy.deepcopy(settings), model, low_cpu_mem_usage=True)
        return read_layers(model), None
    except Exception as error:  # whatever it is, these settings can't be had
        return None, error
    finally:
        _take_off(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)


def read_layers(model: nn.Module) -> AdaptedLayers:
    """What of a model has an adapter."""
    modules, parameters = set(), set()
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if isinstance(module, ParamWrapper):
            parameters.add(f"{plain}.{module.parameter_name}")
        else:
            modules.add(plain)
    trainable = sum(count_weights(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return AdaptedLayers(modules, parameters, trainable)


def _take_off(model: nn.Module) -> None:
    """Put every layer back in the place of its adapter."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and ".base_layer" not in name:
            parent, _, short = name.rpartition(".")
            setattr(model.get_submodule(parent), short, module.get_base_layer())
    if "peft_config" in vars(model):
        del model.peft_config
