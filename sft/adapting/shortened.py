"""A model made small for a trial: its first layers, and windows that a short text is longer than."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

WINDOW = 4  # tokens
CHUNK = "attention_chunk_size"
PLACES = ("layer_idx", "layer_id", "layer_number", "idx", "training")  # what a layer is, not of which kind


@contextmanager
def first_layers(model: PreTrainedModel) -> Iterator[None]:
    """With no more layers than it takes to have one of each kind: tiny batches are slow in all of a large model."""
    try:
        backbone: Any = model.get_decoder() or model.base_model
    except Exception:  # it knows of none
        backbone = model.base_model
    stacks = [(name, child) for name, child in backbone.named_children() if isinstance(child, nn.ModuleList)]
    if len(stacks) != 1:
        yield
        return
    name, layers = stacks[0]
    kinds = [_describe_kind(layer) for layer in layers]
    setattr(backbone, name, layers[: max(map(kinds.index, kinds)) + 1])
    try:
        yield
    finally:
        setattr(backbone, name, layers)


@contextmanager
def small_windows(model: PreTrainedModel) -> Iterator[None]:
    """With every window or chunk of attention, wherever its size is kept, so small that short texts go beyond it."""
    with _made_small(model, lambda name: name.endswith("window") or name in ("sliding_window_size", CHUNK)):
        yield


@contextmanager
def small_selections(model: PreTrainedModel) -> Iterator[None]:
    """Where an index selects the tokens that attention sees, with fewer of them than a short text has."""
    with _made_small(model, lambda name: name.startswith("index") and "topk" in name):
        yield


@contextmanager
def _made_small(model: PreTrainedModel, is_size: Callable[[str], bool]) -> Iterator[None]:
    places = [model.config.get_text_config(), *model.base_model.modules()]
    changed = [
        (place, name, value)
        for place in places
        for name, value in list(vars(place).items())
        if is_size(name) and isinstance(value, int) and not isinstance(value, bool) and value > WINDOW
    ]
    try:
        for place, name, _ in changed:
            setattr(place, name, WINDOW)
        yield
    finally:
        for place, name, value in changed:
            setattr(place, name, value)


def _describe_kind(layer: nn.Module) -> list[Any]:
    return [
        (name, type(part), *((key, value) for key, value in vars(part).items() if _tells_kind(key, value)))
        for name, part in layer.named_modules()
    ]


def _tells_kind(name: str, value: Any) -> bool:
    return name not in PLACES and (value is None or isinstance(value, (bool, int, str)))
