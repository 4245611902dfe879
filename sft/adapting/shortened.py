"""Shrinks a model for a trial: its first layers, few rows of its head, and attention windows shorter than the text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from sft.models.layer_stack import find_stack

WINDOW = 4  # tokens
CHUNK = "attention_chunk_size"
HEAD_ROWS = 4096  # tokens that a trial's head has logits for


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


@contextmanager
def small_head(model: PreTrainedModel, rows: int | None = None) -> Iterator[None]:
    """Keep the first HEAD_ROWS, or `rows`, of the head's, which may be 250,000: a trial runs it dozens of times.

    `draw_text` then draws no other tokens. A head that is not a plain linear layer is left whole.
    """
    rows = rows or HEAD_ROWS
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.out_features <= rows:
        yield
        return
    whole = dict(head._parameters)  # a table of the input that is tied to it keeps all its rows
    for name, weight in whole.items():
        if weight is not None:
            head._parameters[name] = nn.Parameter(weight.detach()[:rows], requires_grad=weight.requires_grad)
    size, head.out_features = head.out_features, rows
    try:
        yield
    finally:
        head._parameters.update(whole)
        head.out_features = size


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
