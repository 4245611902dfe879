"""Chooses the layers that get an adapter, by trying PEFT's settings on the model, and explains which are left out."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft.adapting.injection import AdaptedLayers, read_layers, try_settings
from sft.adapting.named_targets import find_named
from sft.adapting.reach import find_reached
from sft.config import SFTConfig
from sft.errors import InvalidConfig, ModelNotSupported
from sft.models.experts import find_expert_parameters, find_routers
from sft.models.layers import LeftOut, describe_experts, describe_layers, find_layers, name_end, name_shortly
from sft.models.quantized import count_weights

NOT_REACHED = "rows of text do not pass through them"
ODD = "they do not compute what a linear layer computes"
ROUTES = "they route tokens to experts, as the base model has learned to"
STACKED = "they are stacked parameters, not linear layers"
TOGETHER = "PEFT adapts them only together with the stacked experts"
LOST = "PEFT does not load their weights back from the adapter that it saves"
GUESS = (
    "trained weights are counted for all linear layers of the decoder, and can be fewer: which of them a row of text "
    "passes through is known only once the weights of this model are loaded"
)
MANY = 3  # parts named in a sentence


@dataclass(frozen=True)
class Adaptation:
    """The plan for an adapter.

    Attributes:
        settings: PEFT's, with targets that worked in a trial; None if no new adapter is made.
        trainable: number of weights that will be trained.
        modules: number of adapted layers, by the last part of their name.
        is_guess: the numbers are upper bounds, as this model shows no more without its weights.
        is_reached: a row of text is known to give all trained weights a gradient, if it skips no layer.
    """

    settings: LoraConfig | None
    trainable: int
    modules: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    is_guess: bool = False
    is_reached: bool = False


@dataclass
class _Targets:
    modules: set[str]
    parameters: set[str]
    left_out: list[LeftOut]
    is_guess: bool = False


def plan_adaptation(model: PreTrainedModel, config: SFTConfig) -> Adaptation:
    """Choose the layers that get an adapter. The model is left unchanged; it may be empty (on the meta device).

    The default is all linear layers that a row of text passes through, except the head and the routers of experts.

    Raises:
        InvalidConfig: `lora_target_modules` names layers that the model lacks or that can't be adapted.
        ModelNotSupported: no layer of the model can be adapted.
    """
    targets = _choose_targets(model, config)
    settings = _build_settings(model, config, targets)
    try:
        found, error = try_settings(model, settings)
    except Exception as lacking:  # memory, which may be for the rank alone
        _check_rank(model, config, targets, lacking)
        raise
    if error is not None:
        _check_rank(model, config, targets, error)
    if found is None or not _is_what_was_wanted(found, targets):
        _narrow(model, config, targets)
        settings = _build_settings(model, config, targets)
        found, error = try_settings(model, settings)
    while found is not None and found.lost:
        _leave_out_lost(model, config, targets, found.lost)
        settings = _build_settings(model, config, targets)
        found, error = try_settings(model, settings)
    if found is None or not (found.modules or found.parameters):
        reason = f" ({first_sentence(error)})" if error else ""
        raise ModelNotSupported(f"base_model {config.base_model} has no layer that LoRA can adapt{reason}")
    left_out = tuple(targets.left_out)
    warnings = (*([GUESS] if targets.is_guess else []), *list_warnings(model, left_out))
    is_guess = targets.is_guess
    return Adaptation(settings, found.trainable, count_names(found), left_out, warnings, is_guess, not is_guess)


def describe_adaptation(model: nn.Module, left_out: Iterable[LeftOut]) -> dict[str, Any]:
    """Count the trained weights and adapted layers of a model that has its adapter."""
    total = sum(count_weights(parameter) for parameter in model.parameters())
    found = read_layers(model)
    return {
        "trainable_parameters": found.trainable,
        "parameters": total,
        "share": found.trainable / max(total, 1),
        "modules": count_names(found),
        "left_out": [asdict(part) for part in left_out],
    }


def summarize_adaptation(facts: dict[str, Any]) -> str:
    """What `describe_adaptation` returns, in a few words."""
    layers = ", ".join(f"{name} ({count})" for name, count in facts["modules"].items()) or "the whole model"
    counts = f"{facts['trainable_parameters']} of {facts['parameters']} weights"
    return f"{layers}: {counts} ({facts['share']:.2%})"


def _choose_targets(model: PreTrainedModel, config: SFTConfig) -> _Targets:
    layers, experts = find_layers(model), find_expert_parameters(model)
    reach, routers = find_reached(model, set(layers)), find_routers(model) & set(layers)
    reached, odd = reach.reached, reach.odd
    if config.lora_target_modules is None:
        left_out = [
            *describe_layers(layers, set(layers) - reached - odd - routers, NOT_REACHED),
            *describe_layers(layers, odd - routers, ODD),
            *describe_layers(layers, routers, ROUTES),
            *describe_experts(experts, STACKED),
        ]
        return _Targets(reached - routers, set(), left_out, reach.is_guess)
    named = find_named(config.lora_target_modules, layers, experts, reached, reached - routers)
    for value, name, plain in ((config.lora_dropout, "lora_dropout", 0), (config.use_dora, "use_dora", "false")):
        if named.parameters and value:
            raise InvalidConfig(
                f"{name} can't be used with stacked expert parameters, of which lora_target_modules names "
                f"{name_end(min(named.parameters))}, got {value}; set {name} to {plain} or name linear layers only"
            )
    rest = {name: weights for name, weights in experts.items() if name not in named.parameters}
    left_out = [*describe_layers(layers, named.aside, NOT_REACHED), *describe_experts(rest, STACKED)]
    return _Targets(named.modules, named.parameters, left_out)


def _build_settings(model: PreTrainedModel, config: SFTConfig, targets: _Targets) -> LoraConfig:
    modules = name_shortly(targets.modules, [name for name, _ in model.named_modules()])
    parameters = name_shortly(targets.parameters, [name for name, _ in model.named_parameters()], parts=2)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        target_modules=modules,
        target_parameters=parameters or None,
        # Conv1D (GPT-2) keeps its weight as (I, O), a linear layer as (O, I).
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets.modules),
    )


def _check_rank(model: PreTrainedModel, config: SFTConfig, targets: _Targets, error: Exception) -> None:
    """Raise InvalidConfig if lora_r exceeds both sides of every target layer: a higher rank gains nothing."""
    # Weights (O, I) and biases (O,). B A with B (O, r) and A (r, I) has at most rank min(O, I).
    shapes = [parameter.shape for name in targets.modules for parameter in model.get_submodule(name).parameters()]
    widest = max((side for shape in shapes for side in shape), default=0)
    if config.lora_r > widest > 0:
        raise InvalidConfig(
            f"lora_r {config.lora_r} is more than base_model {config.base_model} can hold; "
            f"its widest layer has {widest}: set lora_r to less"
        ) from error


def _is_what_was_wanted(found: AdaptedLayers, targets: _Targets) -> bool:
    return found.modules == targets.modules and found.parameters == targets.parameters


def _narrow(model: PreTrainedModel, config: SFTConfig, targets: _Targets) -> None:
    """Leave out the kinds of layers that PEFT refuses or adapts differently than asked.

    Raises InvalidConfig if `lora_target_modules` names such a kind.
    """
    kinds: dict[str, set[str]] = {}
    for name in targets.modules:
        kinds.setdefault(name.rpartition(".")[2], set()).add(name)
    groups = [_Targets(names, set(), []) for _, names in sorted(kinds.items())]
    for group in [*groups, _Targets(set(), targets.parameters, [])]:
        found, refusal = try_settings(model, _build_settings(model, config, group))
        names = group.modules | group.parameters
        if not names or (found is not None and _is_what_was_wanted(found, group)):
            continue
        reason = f"PEFT refuses them: {first_sentence(refusal)}" if refusal else TOGETHER
        _check_asked(config, names, reason, refusal, every=bool(group.parameters))
        targets.modules -= names
        targets.left_out += describe_layers({name: model.get_submodule(name) for name in names}, names, reason)


def _leave_out_lost(model: PreTrainedModel, config: SFTConfig, targets: _Targets, lost: frozenset[str]) -> None:
    """Leave out layers whose trained weights PEFT would not load back from the saved adapter.

    Raises InvalidConfig if `lora_target_modules` names one, ModelNotSupported if no layer is left.
    """
    if lost >= targets.modules | targets.parameters:
        raise ModelNotSupported(
            f"base_model {config.base_model} can't be trained with LoRA: {LOST}, so the adapter would have no effect"
        )
    _check_asked(config, lost, LOST)
    modules, experts = lost & targets.modules, find_expert_parameters(model)
    targets.modules -= lost
    targets.parameters -= lost
    targets.left_out += describe_layers({name: model.get_submodule(name) for name in modules}, modules, LOST)
    targets.left_out += describe_experts({name: experts[name] for name in lost - modules}, LOST)


def _check_asked(
    config: SFTConfig, names: Collection[str], reason: str, refusal: Exception | None = None, every: bool = False
) -> None:
    """Raise InvalidConfig if `lora_target_modules` names one of these layers, which can't be adapted."""
    asked = [item for item in config.lora_target_modules or () if any(name.endswith(item) for name in names)]
    if asked or every:
        shown = asked[0] if asked else name_end(min(names))
        raise InvalidConfig(
            f"lora_target_modules {shown!r} can't be adapted in this model ({reason}); leave it out"
        ) from refusal


def first_sentence(error: Exception | None) -> str:
    """The first sentence of a library's message, without its tag."""
    lines = re.sub(r"^\[[^\]]*\]\s*", "", str(error or "").strip()).splitlines()
    return lines[0].partition(". ")[0].rstrip(".") if lines else type(error).__name__


def count_names(found: AdaptedLayers) -> dict[str, int]:
    """Number of adapted layers, by the last part of their name."""
    names = [name.rpartition(".")[2] for name in found.modules] + [name_end(name) for name in found.parameters]
    return dict(sorted(Counter(names).items()))


def list_warnings(model: nn.Module, left_out: Iterable[LeftOut]) -> Iterator[str]:
    """Warnings about layers without an adapter; none about routers, which are always left out."""
    total = sum(count_weights(parameter) for parameter in model.parameters())
    by_reason: dict[str, list[LeftOut]] = {}
    for part in left_out:
        by_reason.setdefault(part.reason, []).append(part)
    for reason, parts in by_reason.items():
        if reason == ROUTES:
            continue
        shown = ", ".join(part.what for part in parts[:MANY]) + (" and others" if len(parts) > MANY else "")
        share = sum(part.parameters for part in parts) / max(total, 1)
        more = ""
        if reason == STACKED:
            more = "; to adapt them too, name them in lora_target_modules beside all-linear, with lora_dropout 0"
        yield f"no adapter for {shown}, {share:.0%} of the model's weights, which stay as they are: {reason}{more}"
