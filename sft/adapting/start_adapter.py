"""Describes the adapter that training starts from, and checks that it fits the model."""

import copy
from typing import Any

from peft import LoraConfig
from torch import nn

from sft.adapting.adaptation import STACKED, Adaptation, count_names, first_sentence, list_warnings
from sft.adapting.adapter_files import find_lacking
from sft.adapting.injection import PREFIX, AdaptedLayers, explain_misfit, read_layers, try_settings
from sft.errors import InvalidConfig
from sft.models.experts import find_expert_parameters
from sft.models.layers import describe_experts
from sft.models.quantized import count_weights


def describe_start(
    model: nn.Module, settings: LoraConfig | None = None, stored: dict[str, list[int]] | None = None
) -> Adaptation:
    """Describe the adapter that training starts from: the model's own, or the one these settings would create.

    `stored` has the shapes of the weights in the adapter's file.

    Raises:
        InvalidConfig: the settings do not fit the model.
    """
    found: AdaptedLayers | None = read_layers(model)
    if settings is not None:
        # Fully trained modules and single tokens need a PeftModel, which can't be made of an empty model.
        layers = copy.copy(settings)
        layers.modules_to_save = layers.trainable_token_indices = None
        found, error = try_settings(model, layers)
        if found is None:
            raise InvalidConfig(f"adapter_path does not fit base_model: {first_sentence(error)}") from error
        if found.lost:
            raise InvalidConfig(
                f"adapter_path does not fit base_model: PEFT loads nothing into {len(found.lost)} of its layers, "
                f"{min(found.lost)} for one"
            )
        if stored is not None:
            misfit = explain_misfit(dict(found.saved), stored) or find_lacking(_list_whole(model, settings), stored)
            if misfit:
                raise InvalidConfig(f"adapter_path does not fit base_model: {misfit}")
        found = found._replace(trainable=found.trainable + _count_whole(model, settings))
    assert found is not None  # noqa: S101 - for the type checker
    experts = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): weights
        for name, weights in find_expert_parameters(model).items()
    }
    rest = {name: weights for name, weights in experts.items() if name not in found.parameters}
    left_out = tuple(describe_experts(rest, STACKED))
    return Adaptation(None, found.trainable, count_names(found), left_out, tuple(list_warnings(model, left_out)))


def _count_whole(model: nn.Module, settings: LoraConfig) -> int:
    """Number of weights in `modules_to_save` (fully trained copies) and `trainable_token_indices`."""
    whole = _count_ending(model, tuple(settings.modules_to_save or ()))
    tokens: Any = settings.trainable_token_indices or {}
    if isinstance(tokens, list):
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
        tokens = dict.fromkeys(names[:1], tokens)  # the input embeddings
    for ending, indices in tokens.items():
        tables = [module for name, module in model.named_modules() if name.endswith(ending)]
        whole += sum(len(indices) * int(table.weight.shape[1]) for table in tables[:1])
    return whole


def _count_ending(model: nn.Module, endings: tuple[str, ...]) -> int:
    found = _find_ending(model, endings).values()
    return sum(count_weights(parameter) for module in found for parameter in module.parameters())


def _find_ending(model: nn.Module, endings: tuple[str, ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if endings and name.endswith(endings)}


def _list_whole(model: nn.Module, settings: LoraConfig) -> dict[str, list[int]]:
    """Shapes, by name in the adapter's file, of the weights of the modules in `modules_to_save`."""
    return {
        f"{PREFIX}{name}.{part}": list(weight.shape)
        for name, module in _find_ending(model, tuple(settings.modules_to_save or ())).items()
        for part, weight in module.named_parameters()
        if "Params4bit" not in type(weight).__name__
    }
