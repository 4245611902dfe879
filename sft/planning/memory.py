"""Estimates the memory and disk space that a job needs.

peak = process + weights + 16 * trainable + chunk * V * (8 + e) + batch tokens * bytes per token, with e bytes a weight.
"""

import math
from typing import Any, NamedTuple

from sft.config import SFTConfig
from sft.planning.machine import Device
from sft.planning.probe import Probe
from sft.planning.shape import ModelShape

STATE_BYTES = 16  # a trained weight in fp32, its gradient and Adam's two moments: 4 x 4 bytes
PROCESS_BYTES = {"cpu": 700_000_000, "cuda": 600_000_000}  # Python and libraries; the CUDA context
# Peak memory over the bytes saved for the backward pass: gradients in flight, gaps between freed blocks. On a CPU
# measured with SmolLM2-135M: 1.4 in bf16, 1.3 in fp32.
HELD = {"cpu": 1.35, "cuda": 1.0}
LARGEST_BATCH = 4096
CHECKPOINT_EXTRA_BYTES = 200_000  # scheduler, random states, trainer_state.json, manifest
PEAK_SHARE = 0.9  # share of the free memory that a plan may use


class Activations(NamedTuple):
    """Bytes saved between forward and backward pass."""

    per_token: float
    logits: float  # of one chunk of the head, whatever the batch size


def measure_activations(
    shape: ModelShape, probe: Probe | None, device: Device, checkpointing: bool, chunk: int
) -> Activations:
    """Scale the bytes measured in one layer by the probe to all layers; estimate them when there is no probe.

    The estimate is for LoRA on all linear layers: 9 vectors of width D, and 2.5 of each linear layer's width, which
    sum to about (weights of a layer) / D.
    """
    if probe is not None:
        layer = probe.layer_activation_bytes
    else:
        # e (9 D + 2.5 P / D), P = weights of one layer's matrices
        layer = device.bytes_each * (9 * shape.hidden + 2.5 * shape.matrix_parameters / shape.layers / shape.hidden)
    per_token = shape.layers * layer  # bytes per token
    if checkpointing:  # layers * D * e + layer: each layer's input (D), and one layer at a time in full
        per_token = float(shape.layers * shape.hidden * device.bytes_each) + layer
    # (chunk, V): logits in the model's dtype, and two fp32 tensors while the softmax is computed
    return Activations(HELD[device.kind] * per_token, chunk * shape.vocabulary * (8.0 + device.bytes_each))


def count_fixed_bytes(config: SFTConfig, shape: ModelShape, device: Device) -> dict[str, int]:
    """Bytes that do not depend on the batch."""
    weight_bytes = 0.55 if config.use_qlora else device.bytes_each  # 4 bits and the blocks' scales
    return {
        "process": PROCESS_BYTES[device.kind],
        "weights": int(shape.parameters * (weight_bytes if config.use_lora else 0)),
        "trained_weights_and_optimizer": shape.trainable * STATE_BYTES,
    }


def plan_memory(
    config: SFTConfig,
    shape: ModelShape,
    device: Device,
    activations: Activations,
    batch_tokens: int,
    longest: list[int],
) -> dict[str, Any]:
    """Plan the response's `memory`.

    Args:
        batch_tokens: tokens of the largest batch to expect.
        longest: lengths of all rows, longest first; `largest_batch_size` counts how many of them fit together.
    """
    fixed = count_fixed_bytes(config, shape, device)
    needed = sum(fixed.values()) + activations.logits
    peak = needed + batch_tokens * activations.per_token
    free = int(PEAK_SHARE * device.free_bytes)
    # peak <= free  <=>  batch tokens <= (free - needed) / bytes per token
    tokens_that_fit = max((free - needed) / activations.per_token, 0.0) if activations.per_token else math.inf
    if config.packing:
        largest = int(min(tokens_that_fit // config.max_seq_length, LARGEST_BATCH))
    else:
        largest, total = 0, 0
        while largest < min(len(longest), LARGEST_BATCH) and total + longest[largest] <= tokens_that_fit:
            total += longest[largest]
            largest += 1
    return {
        "peak_bytes": int(peak),
        "free_bytes": device.free_bytes,
        "fits": peak <= free,
        "largest_batch_size": largest,
        "largest_batch_tokens": int(min(tokens_that_fit, 2**53)),
        "parts": {**fixed, "activations": int(peak - needed), "logits": int(activations.logits)},
    }


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
