"""Finds a model's list of layers."""

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from sft.errors import InvalidConfig

PLACES = ("layer_idx", "layer_id", "layer_number", "idx", "training")  # attributes that do not tell a layer's kind


class LayerStack(NamedTuple):
    """A model's list of layers: an attribute of `owner`. The first `first_of_each_kind` layers have one of each."""

    owner: nn.Module
    name: str
    layers: nn.ModuleList
    first_of_each_kind: int


def get_stack(model: PreTrainedModel, subject: str) -> LayerStack:
    """The model's list of layers. Raises InvalidConfig if it has none, or several.

    Args:
        subject: what the message calls the model.
    """
    stack = find_stack(model)
    if stack is None:
        raise InvalidConfig(
            f"shard_model can't split {subject}, which has no single list of layers; set shard_model to false"
        )
    return stack


def find_stack(model: PreTrainedModel) -> LayerStack | None:
    """The model's list of layers; None if it has none, or several."""
    try:
        backbone: Any = model.get_decoder() or model.base_model
    except Exception:  # the model has no such method
        backbone = model.base_model
    stacks = [(name, child) for name, child in backbone.named_children() if isinstance(child, nn.ModuleList)]
    if len(stacks) != 1:
        return None
    name, layers = stacks[0]
    kinds = [_describe_kind(layer) for layer in layers]
    return LayerStack(backbone, name, layers, max(map(kinds.index, kinds)) + 1)


def _describe_kind(layer: nn.Module) -> list[Any]:
    return [
        (name, type(part), *((key, value) for key, value in vars(part).items() if _tells_kind(key, value)))
        for name, part in layer.named_modules()
    ]


def _tells_kind(name: str, value: Any) -> bool:
    return name not in PLACES and (value is None or isinstance(value, (bool, int, str)))
