"""Checks that every token id of the rows has an embedding, and every position in a row a position embedding."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.errors import InvalidConfig, ModelUnusable, is_out_of_memory, walk_causes

FEW_TOKENS = 8  # a row this short fits every model
OFFSETS = 4  # RoBERTa-like tables reserve their first positions for padding but count them as declared
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prepared: AnyRows, config: SFTConfig
) -> list[str]:
    """Compare the token ids of all rows with the model's embeddings. Returns warnings.

    Models pad their embeddings, so having more embeddings than tokens is normal; fewer is an error. A padding token
    without an embedding is replaced by another token, as padding is never attended to. `model` may be empty.

    Raises:
        ModelUnusable: a row has a token that the model has no embedding for.
    """
    known = _count_embeddings(model)
    if known is None:
        return []
    splits = {"train": prepared.load_train, "eval": prepared.load_eval}
    for load in (load for name, load in splits.items() if prepared.largest_ids[name] >= known):
        rows = load()
        if rows is not None and (found := _find_beyond(rows, known)):
            number, token = found
            name = prepared.name_row(number)
            raise ModelUnusable(
                f"base_model {config.base_model} has embeddings for {known} tokens, but its tokenizer has "
                f"{len(tokenizer)}, and row {name} uses token {token} ({tokenizer.convert_ids_to_tokens(token)!r}): "
                f"resize the model's embeddings with `resize_token_embeddings({len(tokenizer)})` and save it, or use "
                "the tokenizer that the model was trained with"
            )
    if len(tokenizer) <= known:
        return []
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= known:
        stand_ins = [tokenizer.eos_token, tokenizer.unk_token, tokenizer.convert_ids_to_tokens(0)]
        tokenizer.pad_token = next(
            token for token in stand_ins if token is not None and tokenizer.convert_tokens_to_ids(token) < known
        )
    return [
        f"the tokenizer has {len(tokenizer)} tokens and the model embeddings for {known}; no row uses the others, but "
        "a text that does can't be read"
    ]


def check_positions(model: PreTrainedModel, prepared: AnyRows, config: SFTConfig) -> list[str]:
    """Compare the longest row with the model's number of positions. Returns warnings.

    A model with a table of positions (GPT-2, OPT, GPT-J) fails on a longer row; one that computes them (rotary) runs,
    outside the range it was trained for. A trial on a single layer shows which it is. `model` may be empty.

    Raises:
        InvalidConfig: a row is longer than the table.
    """
    declared = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(declared, int) or declared <= 0:
        declared = None
    longest = max(prepared.longest.values())
    if declared is not None and longest <= declared - OFFSETS:
        return []
    capacity = measure_capacity(model, longest, declared)
    if capacity is not None:
        raise InvalidConfig(
            f"rows of up to {longest} tokens do not fit base_model {config.base_model}, which has positions for "
            f"{capacity}: set max_seq_length (cutoff_len) to {capacity} or less, and longer rows are cut, or left out "
            "with excess_length_strategy drop"
        )
    if declared is None or longest <= declared:
        return []
    return [f"rows of up to {longest} tokens for a model made for {declared}; set max_seq_length to cut them"]


def measure_capacity(model: PreTrainedModel, longest: int, declared: int | None = None) -> int | None:
    """Tokens of the longest row that the model runs on, by bisection; None if that is `longest` or more, or unknown."""
    layer = _build_layer(model)
    if layer is None or not _reads(layer, FEW_TOKENS) or _reads(layer, longest):
        return None
    low, high = FEW_TOKENS, longest  # invariant: `low` tokens run, `high` fail
    if declared is not None and low < declared < high:
        low, high = (declared, high) if _reads(layer, declared) else (low, declared)
        if low + 1 < high and not _reads(layer, low + 1):
            return low
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if _reads(layer, middle) else (low, middle)
    return low


def _count_embeddings(model: PreTrainedModel) -> int | None:
    """Rows of the smaller of the input and output embeddings, (V, D); None for quantized ones."""
    counts = []
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 2 and type(weight).__name__ != "Params4bit":
            counts.append(int(weight.shape[0]))
    return min(counts, default=None)


def _find_beyond(rows: Dataset, known: int) -> tuple[int, int] | None:
    """Number of the first row that has an id >= `known`, and that id."""
    table = rows.with_format("arrow")[:]
    passed = 0
    for part in table.column("input_ids").chunks:  # Arrow's own buffers, without a copy
        ids = part.flatten().to_numpy()  # (tokens of the chunk,)
        beyond = np.flatnonzero(ids >= known)  # positions in `ids`
        if beyond.size:
            ends = np.cumsum(part.value_lengths().to_numpy())  # (rows of the chunk,): where each row ends in `ids`
            row = passed + int(np.searchsorted(ends, beyond[0], side="right"))
            return int(table.column("row")[row].as_py()), int(ids[beyond[0]])
        passed += len(part)
    return None


def _build_layer(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model with a single layer and zero weights, on the CPU; None if it can't be built.

    The operating system backs zeros with memory only when they are touched, so a large vocabulary costs little.
    """
    try:
        settings = copy.deepcopy(model.config)
        for part in {id(part): part for part in (settings, settings.get_text_config())}.values():
            _shorten(part)
        with init_empty_weights(include_buffers=False):  # buffers may hold positions
            layer = type(model)(settings)
        for module in layer.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(torch.zeros(weight.shape), requires_grad=False))
    except Exception:  # any error means there is no trial model
        return None
    return layer.eval()


def _shorten(settings: Any) -> None:
    for name in _list_counts(settings):
        layers = getattr(settings, name)
        for key, value in list(vars(settings).items()):
            if isinstance(value, list) and len(value) == layers:
                setattr(settings, key, value[:1])
        setattr(settings, name, 1)


def _list_counts(settings: Any) -> Iterator[str]:
    return (name for name in LAYER_COUNTS if isinstance(vars(settings).get(name), int))


def _reads(layer: PreTrainedModel, length: int) -> bool:
    """Whether the forward pass of a row of this many tokens runs; its output does not matter."""
    try:
        with torch.no_grad():
            layer.base_model(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    except Exception as error:  # index or shape errors, different in each architecture
        return any(map(is_out_of_memory, walk_causes(error)))
    return True
