"""Finds stacked expert parameters, lists of experts and routers in mixture-of-experts models of transformers."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

FUSED_DIMENSIONS = 3  # (experts, in, out) or (experts, out, in)


def find_expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Find parameters that stack the weights of several experts in one tensor, by name."""
    counts = set(_list_expert_counts(getattr(model, "config", None)))
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            continue
        for short, parameter in module.named_parameters(recurse=False):
            is_stack = parameter.dim() == FUSED_DIMENSIONS and parameter.shape[0] in counts
            is_flat = parameter.dim() == FUSED_DIMENSIONS - 1 and "expert" in name.rpartition(".")[2].lower()
            if is_stack or is_flat or (parameter.dim() == FUSED_DIMENSIONS and "expert" in name.lower()):
                found[f"{name}.{short}"] = parameter
    # A matrix with a row per expert has their biases or is a router.
    return {name: parameter for name, parameter in found.items() if parameter.dim() == FUSED_DIMENSIONS} or {
        name: parameter for name, parameter in found.items() if min(parameter.shape) not in counts
    }


def is_expert_list(model: nn.Module, name: str) -> bool:
    """Whether this module is a list of equal experts."""
    counts = set(_list_expert_counts(getattr(model, "config", None)))
    module = model.get_submodule(name)
    return isinstance(module, nn.ModuleList) and len(module) in counts and "expert" in name.rpartition(".")[2].lower()


def find_routers(model: nn.Module) -> set[str]:
    """Names of the linear layers that route tokens to experts: they have one output per expert.

    Earlier layers of a router with several layers count too.
    """
    modules = dict(model.named_modules())
    blocks: dict[str, set[int]] = {}
    for name, parameter in find_expert_parameters(model).items():
        holder = name.rpartition(".")[0]
        for place in (holder.rpartition(".")[0], holder):
            blocks.setdefault(place, set()).add(parameter.shape[0])
    for count in set(_list_expert_counts(getattr(model, "config", None))):
        for name, module in modules.items():
            if isinstance(module, nn.ModuleList) and len(module) == count and "expert" in name.lower():
                blocks.setdefault(name.rpartition(".")[0], set()).add(count)
    routers = {
        f"{place}.{short}"
        for place, counts in blocks.items()
        for short, module in modules[place].named_modules()
        if isinstance(module, nn.Linear) and module.out_features in counts and short.count(".") <= 1
    }
    # A router with several layers is found by its name: its last layer may have an output for "no expert".
    routing = {
        f"{place}.{short}"
        for place in blocks
        for short, module in modules[place].named_children()
        if not isinstance(module, nn.Linear) and ("router" in short or short == "gate")
    }
    return routers | {
        f"{place}.{short}"
        for place in routing
        for short, module in modules[place].named_modules()
        if isinstance(module, nn.Linear)
    }


def may_skip_layers(model: nn.Module) -> bool:
    """Whether a batch may pass layers by: tokens are routed to experts, or layers dropped at random (LayerDrop)."""
    settings = getattr(model, "config", None)
    return bool(find_expert_parameters(model)) or any(_list_expert_counts(settings)) or drops_layers(settings)


def drops_layers(config: Any) -> bool:
    """Whether a model of this configuration, or a part of it, passes layers by at random while it trains."""
    values = vars(config).items() if config is not None else ()
    return any(
        drops_layers(value) if hasattr(value, "model_type") else name.endswith("layerdrop") and bool(value)
        for name, value in values
    )


def _list_expert_counts(config: Any) -> Iterator[int]:
    """Yield every number of experts in a configuration and those nested in it."""
    if config is None:
        return
    for name, value in vars(config).items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and _names_a_count(name):
            yield value
        elif hasattr(value, "model_type"):
            yield from _list_expert_counts(value)


def _names_a_count(field: str) -> bool:
    return "expert" in field and not any(part in field for part in ("per_tok", "size", "dim", "top", "group", "freq"))
