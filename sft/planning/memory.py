"""Estimates the memory and disk space that a job needs.

peak(tokens) = process + frozen weights + held(tokens), where held covers what is trained, the optimizer's state and
the activations of a batch: measured for two batches on fake tensors (`sft.training.step_memory`), linear otherwise.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from sft.config import SFTConfig
from sft.planning.machine import Device
from sft.planning.shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sft.training.layout import Layout

STATE_BYTES = 16  # a trained weight in fp32, its gradient and Adam's two moments: 4 x 4 bytes
# Python and libraries, as a job's process holds them before its model is there; the CUDA context.
PROCESS_BYTES = {"cpu": 640_000_000, "cuda": 600_000_000}
PACKED_BYTES = 0.5 + 1 / 64  # of a weight in 4 bits, and its share of the blocks' scales
LARGEST_BATCH = 4096
CHECKPOINT_EXTRA_BYTES = 200_000  # scheduler, random states, trainer_state.json, manifest
PEAK_SHARE = 0.9  # share of the free memory that a plan may use
DOCUMENTS = 4  # fake batches have no more rows laid end to end, as each row costs time and what counts is their tokens


GATHERED_LAYERS = 3  # held whole with shard_model: the one that computes, the next one, and the copy it is made from


class BatchMemory(NamedTuple):
    """Bytes by the tokens of a batch: `at` for `tokens`, and `per_token` for each token more or less."""

    frozen: int
    resting: int
    at: int  # beside the frozen weights
    tokens: int
    per_token: float
    basis: str  # step: measured on fake tensors; formula

    def predict(self, tokens: float) -> float:
        """Bytes beside the frozen weights at most."""
        return max(self.at + (tokens - self.tokens) * self.per_token, self.resting)


def measure_batches(
    config: SFTConfig,
    empty: "PreTrainedModel",
    shape: ModelShape,
    device: Device,
    layout: "Layout",
    checkpointing: bool,
    batch: list[int],
    supervised_share: float,
) -> BatchMemory:
    """What a batch of rows of these lengths takes, and how that grows with its tokens.

    Args:
        empty: the model on the meta device.
    """
    import torch

    from sft.training.fake_step import Step
    from sft.training.step_memory import measure_steps

    dtype = getattr(torch, device.dtype)
    # A window's mask on a CPU, and padded rows, take memory by the length of each row.
    has_window = device.kind == "cpu" and getattr(empty.config.get_text_config(), "sliding_window", None) is not None
    once = tuple(batch) if layout != "documents" or has_window else _merge(batch)
    twice = (*once, *once) if layout != "documents" or has_window else _merge([*batch, *batch])
    steps = [Step(lengths, supervised_share, layout, device.kind, dtype, checkpointing) for lengths in (once, twice)]
    tokens = count_tokens(once, layout)
    needs = measure_steps(empty, config, steps, shape.adaptation)
    if needs is None:
        return _estimate(config, empty, shape, device, layout, checkpointing, tokens)
    first, second = needs
    per_token = max(second.held - first.held, 0) / tokens
    saved = count_saved_bytes(config, empty, device.bytes_each)
    return BatchMemory(first.frozen - saved, first.resting, first.held, tokens, per_token, "step")


def count_tokens(lengths: "tuple[int, ...] | list[int]", layout: "Layout") -> int:
    """Tokens of a batch of these rows, padding included."""
    return sum(lengths) if layout == "documents" else max(lengths) * len(lengths)


def count_loaded_bytes(config: SFTConfig, shape: ModelShape, device: Device) -> int:
    """Bytes of the base model's weights once it is loaded: QLoRA leaves embeddings and head as they are."""
    if not config.use_lora:
        return shape.parameters * STATE_BYTES // 4
    outer = shape.parameters - shape.matrix_parameters
    inner_bytes = PACKED_BYTES if config.use_qlora else device.bytes_each
    return int(outer * device.bytes_each + shape.matrix_parameters * inner_bytes)


def count_saved_bytes(config: SFTConfig, empty: "PreTrainedModel", bytes_each: int) -> int:
    """Bytes of the base model's layers that a device does not hold, as the job's other devices do (`shard_model`).

    Beside its share a device has GATHERED_LAYERS of the largest layers while it computes.
    """
    from sft.models.layer_stack import find_stack

    stack = find_stack(empty) if config.shard_model else None
    if stack is None:
        return 0
    layers = [bytes_each * sum(weight.numel() for weight in layer.parameters()) for layer in stack.layers]
    held = sum(layers) / config.num_devices + GATHERED_LAYERS * max(layers)
    return max(int(sum(layers) - held), 0)


def plan_memory(
    config: SFTConfig,
    device: Device,
    layout: "Layout",
    batches: BatchMemory,
    batch_tokens: int,
    longest: list[int],
    usable_bytes: int,
) -> dict[str, Any]:
    """Plan the response's `memory`.

    Args:
        batch_tokens: tokens of the largest batch to expect.
        longest: lengths of all rows, longest first; `largest_batch_size` counts how many of them fit together.
        usable_bytes: what the job can have when its turn comes (`Device.find_usable_bytes`).
    """
    from sft.training.arguments import count_rows_at_once

    fixed = PROCESS_BYTES[device.kind] + batches.frozen
    peak = fixed + batches.predict(batch_tokens)
    whole = int(PEAK_SHARE * usable_bytes)
    constant = fixed + batches.at - batches.tokens * batches.per_token
    tokens_that_fit = max((whole - constant) / batches.per_token, 0.0) if batches.per_token else math.inf
    if fixed + batches.resting > whole:
        tokens_that_fit = 0.0
    if config.packing:
        at_once = count_rows_at_once(config, layout, device.kind)
        is_one = at_once < config.batch_size  # of batch_size rows one is in memory at a time
        fitting = int(min(tokens_that_fit // config.max_seq_length, LARGEST_BATCH))
        largest = LARGEST_BATCH if is_one and fitting else fitting
    else:
        largest = 0
        limit = min(len(longest), LARGEST_BATCH)
        total = longest[0] if limit else 0
        while largest < limit and total <= tokens_that_fit:
            largest += 1
            if largest < limit:
                total = total + longest[largest] if layout == "documents" else longest[0] * (largest + 1)
    return {
        "peak_bytes": int(peak),
        "free_bytes": device.free_bytes,
        "total_bytes": device.total_bytes,
        "usable_bytes": usable_bytes,
        "fits": peak <= whole,
        "fits_now": peak <= int(PEAK_SHARE * device.free_bytes),
        "largest_batch_size": largest,
        "largest_batch_tokens": int(min(tokens_that_fit, 2**53)),
        "basis": batches.basis,
        "parts": {
            "process": PROCESS_BYTES[device.kind],
            "weights": batches.frozen,
            "trained_weights_and_optimizer": batches.resting,
            "activations": int(peak - fixed - batches.resting),
        },
    }


def _merge(lengths: list[int]) -> tuple[int, ...]:
    """At most DOCUMENTS rows with as many tokens: attention keeps nothing that grows with the square of a length."""
    if len(lengths) <= DOCUMENTS:
        return tuple(lengths)
    whole, rest = divmod(sum(lengths), DOCUMENTS)
    return tuple(whole + (place < rest) for place in range(DOCUMENTS))


def _estimate(
    config: SFTConfig,
    empty: "PreTrainedModel",
    shape: ModelShape,
    device: Device,
    layout: "Layout",
    checkpointing: bool,
    tokens: int,
) -> BatchMemory:
    """By a formula, for models whose step needs the data of its tensors."""
    import torch

    from sft.kernels.loss import CHUNK_POSITIONS
    from sft.training.arguments import estimate_token_bytes
    from sft.training.step_memory import find_gaps

    per_token = float(estimate_token_bytes(config, empty, layout, getattr(torch, device.dtype)))
    if checkpointing:  # each layer's input (D), and one layer at a time in full
        per_token = shape.layers * shape.hidden * device.bytes_each + per_token / shape.layers
    per_token *= find_gaps(device.kind, checkpointing)
    frozen = count_loaded_bytes(config, shape, device) if config.use_lora else 0
    frozen -= count_saved_bytes(config, empty, device.bytes_each)
    resting = shape.trainable * STATE_BYTES
    # (chunk, V): logits in the model's dtype, and two fp32 tensors while the softmax is computed
    logits = CHUNK_POSITIONS * shape.vocabulary * (8 + device.bytes_each)
    return BatchMemory(frozen, resting, int(resting + logits + tokens * per_token), tokens, per_token, "formula")


def plan_disk(
    config: SFTConfig, shape: ModelShape, stored_each: int, companion_bytes: int, steps: int, free_bytes: int
) -> dict[str, Any]:
    """Plan the response's `disk`.

    Args:
        stored_each: bytes per weight in the base model's files.
        companion_bytes: size of the tokenizer's files, which are copied to each folder.
        free_bytes: free space on the disk that the job writes to.
    """
    saves = math.ceil(steps / config.save_steps)  # the last step is always saved
    kept = min(config.save_total_limit, saves)
    adapter = 4 * shape.trainable  # fp32
    checkpoint = 3 * adapter + companion_bytes + CHECKPOINT_EXTRA_BYTES  # weights and Adam's two moments
    at_once = kept + (1 if saves > kept else 0)  # the oldest is deleted after the next one is complete
    merged = shape.parameters * stored_each + companion_bytes if config.save_merged_model and config.use_lora else 0
    parts = {
        "checkpoints": at_once * checkpoint,
        "adapter": adapter + companion_bytes,
        "merged_model": merged,
        "registry": adapter + companion_bytes,
    }
    needed = sum(parts.values())
    return {
        "needed_bytes": needed,
        "free_bytes": free_bytes,
        "fits": needed <= free_bytes,
        "checkpoint_bytes": checkpoint,
        "checkpoints_kept": kept,
        "parts": parts,
    }
