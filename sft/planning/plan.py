"""Makes the complete plan of a job from its configuration and its prepared rows."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.data.row_advice import count_skipped
from sft.models.hardware import FLASH_PACKAGES, Hardware, check_hardware, inspect_hardware
from sft.models.model_class import build_empty
from sft.models.model_settings import describe_repairs
from sft.models.weight_names import check_stored_names
from sft.models.weights import check_weights
from sft.planning.advice import advise, advise_resources
from sft.planning.devices import Card, check_card
from sft.planning.duration import EFFICIENCY, PastRun, find_like, plan_time
from sft.planning.machine import Device, describe_card, describe_device, inspect_device
from sft.planning.memory import (
    BatchMemory,
    count_loaded_bytes,
    count_saved_bytes,
    measure_batches,
    plan_disk,
    plan_memory,
)
from sft.planning.probe import Probe, choose_rows, fits_probe, run_probe
from sft.planning.samples import show_samples
from sft.planning.shape import ModelShape, measure_companions, measure_shape, measure_weight
from sft.planning.steps import Batches, describe_batches, plan_batches, repeat_lengths
from sft.planning.tokens import TokenRows, describe_tokens, read_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sft.training.layout import Layout

logger = logging.getLogger(__name__)


def make_plan(
    config: SFTConfig,
    prepared: AnyRows,
    model_path: Path,
    past_runs: list[PastRun],
    free_disk_bytes: int,
    target: tuple[str, Card] | None = None,
    held_bytes: int = 0,
) -> dict[str, Any]:
    """Plan the job; returns plain JSON values.

    Args:
        prepared: the result of `sft.data.tokenization.prepare` for the same config and model.
        past_runs: completed jobs of the same base model, newest first.
        free_disk_bytes: free space on the disk that the job writes to.
        target: name and facts of a device to plan for, which need not be here; None for that of this machine.
        held_bytes: main memory that jobs hold now, and give back.

    Raises:
        InvalidConfig: this machine or model does not support a value.
        ModelNotFound: the model can't be read.
    """
    from sft.adapting.shardable import check_sharding
    from sft.models.loading import load_tokenizer
    from sft.training.embeddings import check_positions, check_vocabulary
    from sft.training.foresight import Place, foresee_layout
    from sft.training.optimizers import check_optimizer, check_optimizer_name

    if target is None:
        check_optimizer(config, may_use_gpu=False)
        check_hardware(config, inspect_hardware())
    else:
        # What is installed there, and how many GPUs a worker has, is not known here.
        worker = Hardware(config.num_devices, cores=1, has_bitsandbytes=True, flash_attention=tuple(FLASH_PACKAGES))
        check_optimizer_name(config)
        check_hardware(config.model_copy(update={"device_map": None}), worker)
        check_card(config, *target)
    check_weights(model_path, f"base_model {config.base_model}")
    rows = read_tokens(prepared.load_train())
    held_out_rows = prepared.load_eval()
    held_out = None if held_out_rows is None else read_tokens(held_out_rows)
    empty = build_empty(model_path, f"base_model {config.base_model}")
    stored_notes = describe_repairs(model_path) + check_stored_names(
        empty, model_path, f"base_model {config.base_model}"
    )
    table_notes = check_vocabulary(empty, load_tokenizer(model_path), prepared, config)
    check_positions(empty, prepared, config)
    check_sharding(lambda: empty, config)
    shape = measure_shape(empty, config, model_path)
    device = inspect_device(config) if target is None else describe_card(*target, config)
    scale, eval_scale = prepared.measure_scales(config.max_samples)
    share = float(rows.supervised.sum() / rows.lengths.sum())
    usable_bytes = device.find_usable_bytes(held_bytes)
    layout = foresee_layout(empty, config.attn_implementation, Place(device.kind, _dtype(device), device.capability))
    sizes = _measure_sizes(config, empty, shape, device, layout, rows, share, usable_bytes, scale)
    probe = _probe(config, prepared, model_path, shape, device, rows, sizes.batches)
    if probe is not None and probe.layout != layout:
        layout = probe.layout
        sizes = _measure_sizes(config, empty, shape, device, layout, rows, share, usable_bytes, scale)
    batches, checkpointing = sizes.batches, sizes.checkpointing
    tokens_per_step = batches.mean_tokens * config.gradient_accumulation_steps * config.num_devices
    like = find_like(past_runs, shape, device, checkpointing, tokens_per_step) if device.is_here else []
    longest_first = sorted(repeat_lengths(rows.lengths, scale)[0].tolist(), reverse=True)
    memory = plan_memory(config, device, layout, sizes.memory, batches.max_tokens, longest_first, usable_bytes)
    disk = plan_disk(
        config, shape, measure_weight(shape), measure_companions(model_path), batches.steps, free_disk_bytes
    )
    eval_tokens = 0 if held_out is None else round(int(held_out.lengths.sum()) * eval_scale)
    time = plan_time(config, shape, device, batches, share, eval_tokens, checkpointing, like, past_runs, probe)
    notes = advise(config, shape, prepared.stats, rows, held_out, batches.steps, scale)
    return {
        "device": describe_device(device),
        "rows": {name: describe_rows(prepared, name) for name in ("train", "eval")},
        "sample": prepared.sample,
        "sources": prepared.describe_parts() or None,
        "ignored": prepared.ignored,
        "tokens": describe_tokens(rows) | {"supervised_share": round(share, 4)},
        "batches": describe_batches(config, rows, batches, scale),
        "steps": batches.steps,
        "epochs": round(batches.epochs, 3),
        "model": {
            "parameters": shape.parameters,
            "trainable_parameters": shape.trainable,
            "share": shape.share,
            "adapted": shape.adaptation.modules,
            "left_out": [asdict(part) for part in shape.adaptation.left_out],
            "layout": layout,
            "gradient_checkpointing": checkpointing,
        },
        "memory": memory,
        "disk": disk,
        "time": time,
        "samples": show_samples(prepared.load_train(), rows, model_path),
        "warnings": [
            *_tell_sample(prepared),
            *notes,
            *({"code": "adaptation", "message": message} for message in shape.adaptation.warnings),
            *({"code": "vocabulary", "message": message} for message in table_notes),
            *({"code": "weights", "message": message} for message in stored_notes),
            *advise_resources(memory, disk, config, device.kind),
            *({"code": code, "message": message} for code, message in prepared.advice if code != "rows_skipped"),
        ],
        "was_tokenized_before": prepared.was_cached,
    }


def _tell_sample(prepared: AnyRows) -> Iterator[dict[str, Any]]:
    if prepared.sample is not None:
        read, rows = prepared.sample["rows"], prepared.sample["of"]
        yield {
            "code": "sampled",
            "message": f"{read} of {rows} rows were read, from all over the data: what is said of rows and tokens is "
            "said of them, and batches, steps and times are scaled up; the job reads every row",
        }


def describe_rows(prepared: AnyRows, split: str) -> dict[str, Any] | None:
    """A split's counts, and the rows that were left out or cut, with reasons; None if the split has no rows."""
    counts = prepared.stats[split]
    if counts is None:
        return None
    notes = prepared.notes[split]
    invalid = [{"row": row, "reason": reason} for row, reason in notes["invalid"]]  # type: ignore[misc]  # pairs
    return counts | {
        "skipped": count_skipped(counts),
        "reasons": prepared.reasons[split],
        "notes": {**notes, "invalid": invalid},
    }


class _Sizes(NamedTuple):
    batches: Batches
    checkpointing: bool
    memory: BatchMemory


def _measure_sizes(
    config: SFTConfig,
    empty: "PreTrainedModel",
    shape: ModelShape,
    device: Device,
    layout: "Layout",
    rows: TokenRows,
    share: float,
    usable_bytes: int,
    scale: float,
) -> _Sizes:
    """Batches, checkpointing and memory with this layout of the rows."""
    from sft.training.arguments import count_rows_at_once, fill_packed_rows, needs_checkpointing

    batches = plan_batches(config, rows.lengths, layout != "documents", scale)
    checkpointing = config.gradient_checkpointing
    if checkpointing == "auto":
        loaded = count_loaded_bytes(config, shape, device) - count_saved_bytes(config, empty, device.bytes_each)
        room = usable_bytes - loaded
        checkpointing = needs_checkpointing(
            *(config, lambda: empty, layout, rows.lengths.tolist(), share, _dtype(device), device.kind, room),
            shape.adaptation,
        )
    lengths = [int(rows.lengths[index]) for index in batches.heaviest]
    if config.packing:
        at_once = count_rows_at_once(config, layout, device.kind)
        lengths = list(fill_packed_rows(config, round(int(rows.lengths.sum()) * scale), at_once))
        batches = batches._replace(max_tokens=min(batches.max_tokens, at_once * config.max_seq_length))
    memory = measure_batches(config, empty, shape, device, layout, checkpointing, lengths, share)
    return _Sizes(batches, checkpointing, memory)


def _probe(
    config: SFTConfig,
    prepared: AnyRows,
    model_path: Path,
    shape: ModelShape,
    device: Device,
    rows: TokenRows,
    batches: Batches,
) -> Probe | None:
    """Probe the model on this machine; None for a GPU, which a job may use, or if too much would have to be loaded."""
    if device.kind == "cuda" or config.use_qlora or not fits_probe(shape, device.bytes_each, device.free_bytes):
        return None
    lengths = [int(rows.lengths[index]) for index in batches.sample]
    kept = choose_rows(shape, lengths, EFFICIENCY * device.flops_per_second)
    return run_probe(config, prepared, model_path, device.dtype, [batches.sample[place] for place in kept])


def _dtype(device: Device) -> Any:
    import torch

    return getattr(torch, device.dtype)
