"""What a job needs of memory and disk."""

import math
from typing import Any, NamedTuple

from sft.config import SFTConfig
from sft.planning.machine import Device
from sft.planning.probe import Probe
from sft.planning.shape import ModelShape

STATE_BYTES = 16  # a trained weight in fp32: itself, its gradient and Adam's two moments
PROCESS_BYTES = {"cpu": 700_000_000, "cuda": 600_000_000}  # libraries, or the CUDA context
# What is held at most over what the backward pass needs: gradients on their way, gaps between freed blocks. On a CPU
# as measured with SmolLM2-135M: 1.4 in bf16, 1.3 in fp32.
HELD = {"cpu": 1.35, "cuda": 1.0}
LARGEST_BATCH = 4096
CHECKPOINT_EXTRA_BYTES = 200_000  # scheduler, random states, trainer_state.json, manifest
PEAK_SHARE = 0.9  # of what is free, that may be planned with


class Activations(NamedTuple):
    """Bytes a batch holds between forward and backward."""

    per_token: float
    logits: float  # of one chunk of the head, whatever the batch


def measure_activations(
    shape: ModelShape, probe: Probe | None, device: Device, checkpointing: bool, chunk: int
) -> Activations:
    """What was kept in the probe, scaled to all layers; else the vectors that LoRA on all linear layers keeps."""
    if probe is not None:
        layer = probe.layer_activation_bytes
    else:
        layer = device.bytes_each * (9 * shape.hidden + 2.5 * shape.matrix_parameters / shape.layers / shape.hidden)
    per_token = shape.layers * layer
    if checkpointing:
        per_token = float(shape.layers * shape.hidden * device.bytes_each) + layer
    return Activations(HELD[device.kind] * per_token, chunk * shape.vocabulary * (8.0 + device.bytes_each))


def count_fixed_bytes(config: SFTConfig, shape: ModelShape, device: Device) -> dict[str, int]:
    """Bytes that do not depend on the batch."""
    weight_bytes = 0.55 if config.use_qlora else device.bytes_each  # 4 bits and their scales
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
    """The answer's `memory`.

    Args:
        batch_tokens: of the heaviest batch to be expected.
        longest: lengths of all rows, longest first; the largest batch must hold that many of these.
    """
    fixed = count_fixed_bytes(config, shape, device)
    needed = sum(fixed.values()) + activations.logits
    peak = needed + batch_tokens * activations.per_token
    free = int(PEAK_SHARE * device.free_bytes)
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
    """The answer's `disk`.

    Args:
        stored_each: bytes of a weight as the base model's files hold it.
        companion_bytes: of the tokenizer's files, which each folder gets.
        free_bytes: on the disk that the job writes to.
    """
    saves = math.ceil(steps / config.save_steps)  # the last step is always saved
    kept = min(config.save_total_limit, saves)
    adapter = 4 * shape.trainable
    checkpoint = 3 * adapter + companion_bytes + CHECKPOINT_EXTRA_BYTES
    at_once = kept + (1 if saves > kept else 0)  # the oldest goes once the next one is whole
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
