"""Chooses the layers that get an adapter, by trying PEFT's settings on the model, and explains which are left out."""

import copy
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft.adapting.adapter_files import find_lacking
from sft.adapting.injection import PREFIX, AdaptedLayers, explain_misfit, read_layers, try_settings
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
    """

    settings: LoraConfig | None
    trainable: int
    modules: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    is_guess: bool = False


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
    found, error = try_settings(model, settings)
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
        reason = f" ({_first_line(error)})" if error else ""
        raise ModelNotSupported(f"base_model {config.base_model} has no layer that LoRA can adapt{reason}")
    left_out = tuple(targets.left_out)
    warnings = (*([GUESS] if targets.is_guess else []), *_warn(model, left_out))
    return Adaptation(settings, found.trainable, _count_names(found), left_out, warnings, targets.is_guess)


def describe_start(
    model: nn.Module, settings: LoraConfig | None = None, stored: dict[str, list[int]] | None = None
) -> Adaptation:
    """Describe the adapter that training starts from: the model's own, or the one these settings would make.

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
            raise InvalidConfig(f"adapter_path does not fit base_model: {_first_line(error)}") from error
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
    return Adaptation(None, found.trainable, _count_names(found), left_out, tuple(_warn(model, left_out)))


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


def describe_adaptation(model: nn.Module, left_out: Iterable[LeftOut]) -> dict[str, Any]:
    """Count the trained weights and adapted layers of a model that has its adapter."""
    total = sum(count_weights(parameter) for parameter in model.parameters())
    found = read_layers(model)
    return {
        "trainable_parameters": found.trainable,
        "parameters": total,
        "share": found.trainable / max(total, 1),
        "modules": _count_names(found),
        "left_out": [asdict(part) for part in left_out],
    }


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
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets.modules),
    )


def _check_rank(model: PreTrainedModel, config: SFTConfig, targets: _Targets, error: Exception) -> None:
    """Raise InvalidConfig if lora_r exceeds both sides of every target layer: a higher rank gains nothing."""
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
        reason = f"PEFT refuses them: {_first_line(refusal)}" if refusal else TOGETHER
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


def _first_line(error: Exception | None) -> str:
    """The first sentence of a library's message, without its tag."""
    lines = re.sub(r"^\[[^\]]*\]\s*", "", str(error or "").strip()).splitlines()
    return lines[0].partition(". ")[0].rstrip(".") if lines else type(error).__name__


def _count_names(found: AdaptedLayers) -> dict[str, int]:
    names = [name.rpartition(".")[2] for name in found.modules] + [name_end(name) for name in found.parameters]
    return dict(sorted(Counter(names).items()))


def _warn(model: nn.Module, left_out: Iterable[LeftOut]) -> Iterator[str]:
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
