"""Finds a model's linear layers by name, and shortens names for messages and for PEFT."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft.models.quantized import count_weights


@dataclass(frozen=True)
class LeftOut:
    """A part of the model without an adapter: what it is, how many weights it has, and why."""

    what: str
    parameters: int
    reason: str


def find_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer except the head and layers tied to the head or the embeddings."""
    outer = [model.get_output_embeddings(), model.get_input_embeddings()]
    heads = {id(module.weight) for module in outer if isinstance(getattr(module, "weight", None), torch.Tensor)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and id(module.weight) not in heads
    }


def count_layers(model: PreTrainedModel) -> int:
    """Number of layers in the configuration, under any of its names; else the length of the longest ModuleList."""
    declared = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    longest = max((len(child) for child in model.modules() if isinstance(child, nn.ModuleList)), default=1)
    return declared if isinstance(declared, int) else longest


def describe_layers(layers: dict[str, nn.Module], names: Iterable[str], reason: str) -> list[LeftOut]:
    """One entry per kind of layer, with `*` in place of layer numbers."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", name), []).append(name)
    return [
        LeftOut(
            f"{kind} ({len(members)} layers)" if len(members) > 1 else kind,
            sum(count_weights(weight) for name in members for weight in layers[name].parameters()),
            reason,
        )
        for kind, members in kinds.items()
    ]


def describe_experts(experts: dict[str, nn.Parameter], reason: str) -> list[LeftOut]:
    """One entry for all stacked parameters; none if there are none."""
    if not experts:
        return []
    names = ", ".join(sorted({name_end(name) for name in experts}))
    return [LeftOut(f"experts ({names})", sum(weights.numel() for weights in experts.values()), reason)]


def name_end(name: str) -> str:
    """`experts.down_proj` of `model.layers.0.mlp.experts.down_proj`."""
    return ".".join(name.split(".")[-2:])


def name_shortly(wanted: Collection[str], everything: Iterable[str], parts: int = 1) -> list[str]:
    """For PEFT: the last parts of the names if these match nothing else, otherwise whole names."""

    def end(name: str) -> str:
        return ".".join(name.split(".")[-parts:])

    unwanted = {end(name) for name in everything if name not in wanted}
    return sorted({name if end(name) in unwanted else end(name) for name in wanted})
