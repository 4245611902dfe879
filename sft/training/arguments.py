"""Converts SFTConfig to TRL's arguments, and decides on gradient checkpointing by the free memory."""

import heapq
import resource
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from trl import SFTConfig as TrainerArguments

from sft.adapting.adaptation import Adaptation
from sft.config import SFTConfig, count_warmup_steps
from sft.data.mixing import AnyRows
from sft.models.experts import may_skip_layers
from sft.models.layers import count_layers
from sft.models.sharding import agree
from sft.training.allocation import return_large_blocks
from sft.training.fake_step import Step
from sft.training.layout import Layout
from sft.training.liger import can_use_liger
from sft.training.step_memory import measure_steps

SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
SAMPLING = {"documents": "random", "padded": "group_by_length", "trl": "random", "logits": "group_by_length"}
SAMPLING_ON_GPU = SAMPLING | {"trl": "group_by_length"}
# Share of the free memory that activations, and what is trained, may fill before they are recomputed instead.
MEMORY_SHARE = {"cpu": 0.7, "cuda": 0.9}
HEAD_BYTES = 2**29  # at most, of the logits that a head holds at once
GENEROUS = 2  # an estimate this many times as large is beyond what any step keeps
# Hidden (D) and intermediate (F) vectors that a layer saves per token for the backward pass. Measured with adapters
# on all linear layers: PEFT's own layers, and ours (`sft.kernels.fused_lora`).
KEPT_VECTORS = {"libraries": (18, 16), "fused": (16, 6)}


class OneDeviceArguments(TrainerArguments):  # type: ignore[misc]  # trl is untyped here
    """TRL's arguments for a process that trains on one device, however many GPUs it sees.

    transformers would wrap the model in `nn.DataParallel`, which TRL refuses.
    """

    @property
    def n_gpu(self) -> int:
        """Number of GPUs this process trains on: one, or none."""
        return min(int(super().n_gpu), 1)

    @cached_property
    def _setup_devices(self) -> torch.device:
        """The GPU that this process has chosen (`torch.cuda.set_device`), where transformers takes the first one."""
        chosen = torch.cuda.current_device() if torch.cuda.is_available() else 0
        device: torch.device = super()._setup_devices
        if device.type != "cuda" or self.distributed_state.distributed_type != DistributedType.NO:
            return device
        torch.cuda.set_device(chosen)
        return torch.device("cuda", chosen)

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Number of warmup steps; `warmup_steps` holds a share of all steps."""
        return count_warmup_steps(num_training_steps, self.warmup_steps)


def build_arguments(
    config: SFTConfig,
    layout: Layout,
    dtype: torch.dtype,
    checkpoint_dir: Path,
    checkpointing: bool,
    has_eval: bool,
    trains_all: bool = False,
) -> TrainerArguments:
    """Build TRL's arguments for this config.

    `sft.training.optimizers.check_optimizer` has checked the optimizer before.

    Args:
        trains_all: every batch gives every trained weight a gradient, so DDP need not search for others at each step.
    """
    has_gpu = torch.cuda.is_available()
    rows = count_rows_at_once(config, layout, "cuda" if has_gpu else "cpu")
    sampling = SAMPLING_ON_GPU if has_gpu else SAMPLING
    options: dict[str, Any] = {} if config.optimizer_type is None else {"optim": config.optimizer_type}
    return OneDeviceArguments(
        output_dir=str(checkpoint_dir),
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=config.gradient_accumulation_steps * (config.batch_size // rows),
        learning_rate=config.learning_rate,
        num_train_epochs=config.num_epochs,
        max_steps=config.max_steps or -1,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type=SCHEDULERS[config.scheduler_type],
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        ddp_find_unused_parameters=False if trains_all else None,
        activation_checkpointing=checkpointing,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        metric_for_best_model="eval_loss" if config.early_stopping_patience else None,
        eval_strategy="steps" if config.eval_steps and has_eval else "no",
        eval_steps=config.eval_steps,
        seed=config.seed,
        use_liger_kernel=can_use_liger(layout, "cuda" if has_gpu else "cpu"),
        packing=config.packing,
        max_length=config.max_seq_length if config.packing else None,
        padding_free=layout == "documents",
        dataset_kwargs={"skip_prepare_dataset": True},  # rows are tokenized and packed already
        # Grouping by length uses each process's own random state, so processes would disagree about the order.
        train_sampling_strategy="random" if config.packing or config.num_devices > 1 else sampling[layout],
        dataloader_pin_memory=has_gpu,
        accelerator_config={"non_blocking": has_gpu},  # else each tensor of a batch waits for the device
        use_cpu=not has_gpu,
        report_to="none",
        disable_tqdm=True,
        **options,
    )


def count_rows_at_once(config: SFTConfig, layout: Layout, kind: str) -> int:
    """Rows of a batch in memory: `batch_size`, or one where a packed row is one sequence with a (T, T) mask.

    That is where attention does not know the documents.
    """
    is_masked = config.packing and (layout in ("trl", "logits") or (layout == "padded" and kind == "cuda"))
    return 1 if is_masked else config.batch_size


def trains_every_weight(model: nn.Module, adaptation: Adaptation) -> bool:
    """Whether each batch surely gives every trained weight a gradient: those of an adapter, in a dense model."""
    return adaptation.is_reached and not may_skip_layers(model)


def settle_checkpointing(
    config: SFTConfig,
    build: Callable[[], PreTrainedModel],
    layout: Layout,
    prepared: AnyRows,
    dtype: torch.dtype,
    kind: str,
) -> bool:
    """Whether to train with gradient checkpointing: as configured, or with `auto` as `needs_checkpointing` finds.

    On a CPU this process then gives freed memory back, as memory is why one computes twice.
    """
    is_wanted = _choose_checkpointing(config, build, layout, prepared, dtype, kind)
    if is_wanted and kind == "cpu":
        return_large_blocks()
    return is_wanted


def _choose_checkpointing(
    config: SFTConfig,
    build: Callable[[], PreTrainedModel],
    layout: Layout,
    prepared: AnyRows,
    dtype: torch.dtype,
    kind: str,
) -> bool:
    if config.gradient_checkpointing != "auto":
        return config.gradient_checkpointing
    counts = prepared.stats["train"] or {}
    share = counts.get("supervised_tokens", 0) / max(counts.get("tokens", 0), 1)
    lengths = prepared.load_train()["length"][:]
    is_needed = needs_checkpointing(config, build, layout, lengths, share, dtype, kind, measure_free_memory())
    return agree(is_needed, kind) if config.shard_model else is_needed


def needs_checkpointing(
    config: SFTConfig,
    build: Callable[[], PreTrainedModel],
    layout: Layout,
    lengths: Sequence[int],
    supervised_share: float,
    dtype: torch.dtype,
    kind: str,
    free_bytes: int,
    adaptation: Adaptation | None = None,
) -> bool:
    """Whether the activations of the largest possible batch of these rows exceed the free memory.

    They are measured on fake tensors (`sft.training.step_memory`), unless even a generous estimate of them fits.

    Args:
        build: makes the model on the meta device.
        kind: `cpu` or `cuda`.
        free_bytes: free memory beside the model's weights.
        adaptation: what `plan_adapter` found for this model, where that is known.
    """
    model = build()
    batch = choose_heaviest_batch(config, layout, lengths, kind)
    allowed = MEMORY_SHARE[kind] * free_bytes
    estimate = sum(batch) * estimate_token_bytes(config, model, layout, dtype)
    if GENEROUS * (estimate + HEAD_BYTES) <= allowed:
        return False
    step = Step(batch, supervised_share, layout, kind, dtype, checkpointing=False)
    needs = measure_steps(model, config, [step], adaptation)
    loaded = 0 if config.use_lora else 4 * sum(weight.numel() for weight in model.parameters())  # trained, in fp32
    return (needs[0].held - loaded if needs else estimate) > allowed


def estimate_token_bytes(config: SFTConfig, model: PreTrainedModel, layout: Layout, dtype: torch.dtype) -> int:
    """Bytes that a token keeps in all layers for the backward pass, for decoders of the usual kind."""
    settings = model.config.get_text_config()
    is_fused = layout != "trl" and config.use_lora and not config.use_dora and not _has_transposed_layers(model)
    of_hidden, of_intermediate = KEPT_VECTORS["fused" if is_fused else "libraries"]
    hidden = model.get_input_embeddings().weight.shape[1]
    inner = getattr(settings, "intermediate_size", None) or 4 * hidden
    inner = inner if isinstance(inner, int) else max(inner)  # the widest layer's, if layers differ
    itemsize = dtype.itemsize if config.use_lora else torch.float32.itemsize
    return int(count_layers(model) * (of_hidden * hidden + of_intermediate * inner) * itemsize)


def choose_heaviest_batch(config: SFTConfig, layout: Layout, lengths: Sequence[int], kind: str) -> tuple[int, ...]:
    """Lengths of the rows, or of the padded rows, of the largest batch that rows of these lengths can form."""
    if config.packing:
        return fill_packed_rows(config, sum(lengths), count_rows_at_once(config, layout, kind))
    longest = heapq.nlargest(config.batch_size, lengths)
    if config.max_batch_tokens:
        rows = max(config.max_batch_tokens // longest[0], 1)
        return (max(longest[0], -(-config.max_batch_tokens // rows)),) * rows
    return tuple(longest) if layout == "documents" else (longest[0],) * len(longest)


def fill_packed_rows(config: SFTConfig, tokens: int, most: int) -> tuple[int, ...]:
    """Lengths of the packed rows of the largest batch that so many tokens can fill; at most `most` rows."""
    whole, rest = divmod(tokens, config.max_seq_length)
    rows = (config.max_seq_length,) * min(whole, most)
    return rows if len(rows) == most or not rest else (*rows, rest)


def measure_free_memory() -> int:
    """Free bytes for activations: on the CUDA device if there is one, else in main memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def measure_peak_memory() -> int:
    """Peak memory in bytes so far: of the CUDA device if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:  # ru_maxrss of a process begins with the peak of the process that started it
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _has_transposed_layers(model: PreTrainedModel) -> bool:
    """Whether layers store transposed weights (`Conv1D`), as GPT-2 does."""
    return any(isinstance(module, Conv1D) for module in model.modules())
