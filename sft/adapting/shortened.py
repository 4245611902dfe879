"""Shrinks a model for a trial: its first layers only, and attention windows shorter than the trial's text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

WINDOW = 4  # tokens
CHUNK = "attention_chunk_size"
PLACES = ("layer_idx", "layer_id", "layer_number", "idx", "training")  # attributes that do not tell a layer's kind


class LayerStack(NamedTuple):
    """A model's list of layers: an attribute of `owner`. The first `first_of_each_kind` layers have one of each."""

    owner: nn.Module
    name: str
    layers: nn.ModuleList
    first_of_each_kind: int


@contextmanager
def first_layers(model: PreTrainedModel) -> Iterator[None]:
    """Keep the first layers up to one of each kind, as even tiny batches are slow through all of a large model."""
    stack = find_stack(model)
    if stack is None:
        yield
        return
    setattr(stack.owner, stack.name, stack.layers[: stack.first_of_each_kind])
    try:
        yield
    finally:
        setattr(stack.owner, stack.name, stack.layers)


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


@contextmanager
def small_windows(model: PreTrainedModel) -> Iterator[None]:
    """Set every attention window or chunk size to WINDOW, so that short texts exceed it."""
    with _made_small(model, lambda name: name.endswith("window") or name in ("sliding_window_size", CHUNK)):
        yield


@contextmanager
def small_selections(model: PreTrainedModel) -> Iterator[None]:
    """Set the number of tokens selected by an index (sparse attention) to WINDOW, so that short texts exceed it."""
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
