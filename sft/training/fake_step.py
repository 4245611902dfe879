"""Runs the real training step on fake tensors, which have shapes and no data, and counts the bytes that are alive.

The model, PEFT's adapter, our kernels, the loss, the backward pass, the clipping and the optimizer are those of a job.
Only what can't run without data or without the device is replaced, by parts that allocate the same: see
`sft.training.stand_ins`. A step of a model of any size takes seconds on any machine.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from accelerate.utils import convert_outputs_to_fp32
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel, Trainer, TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from sft.config import SFTConfig
from sft.kernels.fused_lora import fuse_adapters
from sft.kernels.packing import register_document_attention
from sft.kernels.varlen_attention import register_varlen_attention
from sft.models.loading import quiet_transformers
from sft.training.layout import LOSSES, WITH_PADDING, Layout, choose_document_attention
from sft.training.ledger import Ledger
from sft.training.liger import can_use_liger, standing_in_for_liger
from sft.training.stand_ins import pack_linear_layers, standing_in

IGNORED = -100


class PhasePeaks(NamedTuple):
    """Most bytes beyond those of the frozen model, at one time, in each phase of a step."""

    forward: int
    backward: int
    update: int  # clipping and the optimizer


class StepMemory(NamedTuple):
    """What a step of a model took, in bytes of its tensors."""

    frozen: int  # the model's weights and buffers; those that are trained count elsewhere
    resting: int  # trained weights, the optimizer's state, and gradients that are kept between batches
    peaks: PhasePeaks


class Step(NamedTuple):
    """A step to measure.

    Attributes:
        lengths: tokens of the rows of its batch.
        supervised_share: share of the tokens that are supervised.
        kind: `cpu` or `cuda`.
        dtype: compute dtype.
    """

    lengths: tuple[int, ...]
    supervised_share: float
    layout: Layout
    kind: str
    dtype: torch.dtype
    checkpointing: bool


def run_fake_steps(
    model: PreTrainedModel, config: SFTConfig, adapter: LoraConfig | None, steps: Sequence[Step]
) -> list[StepMemory]:
    """Run steps of this model one after the other; it is on the meta device and is used up.

    Args:
        adapter: settings of the adapter; None to train the whole model.
        steps: they differ in their rows alone.

    Raises:
        Exception: any of torch's, if an operation of the model needs the data of a tensor.
    """
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    batches = [make_batch(step, vocabulary) for step in steps]
    with quiet_transformers(), standing_in(steps[0].kind), ExitStack() as stack:
        trained = _prepare(model, config, adapter, steps[0])
        if can_use_liger(steps[0].layout, steps[0].kind):
            stack.enter_context(standing_in_for_liger(trained))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, Ledger(mode) as ledger:
            _materialize(trained)
            frozen = sum(
                tensor.untyped_storage().nbytes()
                for tensor in {id(tensor): tensor for tensor in (*trained.parameters(), *trained.buffers())}.values()
                if not tensor.requires_grad
            )
            weights = [weight for weight in trained.parameters() if weight.requires_grad]
            for weight in weights:
                weight.grad = torch.empty_like(weight)
            update = _make_optimizer(trained, config, weights)  # its state is there before every batch but the first
            run = _Run(trained, config, steps[0].layout, weights, update)
            return [run.measure(batch, ledger, frozen) for batch in batches]


def make_batch(step: Step, vocabulary: int) -> dict[str, Any]:
    """The batch that the trainer's collator makes of rows of these lengths; the last tokens of each are supervised."""
    rows = []
    for length in step.lengths:
        learned = max(round(length * step.supervised_share), 1)
        ids = [min(1, vocabulary - 1)] * length
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length - learned) + ids[:learned]})
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=step.layout == "documents")
    return dict(collate(rows))


def _prepare(model: PreTrainedModel, config: SFTConfig, adapter: LoraConfig | None, step: Step) -> nn.Module:
    """The model as the trainer has it before the first batch, still on the meta device."""
    register_document_attention()
    register_varlen_attention()
    if step.layout == "documents":
        model.set_attn_implementation(choose_document_attention(step.kind))
    elif config.attn_implementation in WITH_PADDING:
        model.set_attn_implementation(config.attn_implementation)
    model.to(step.dtype if config.use_lora else torch.float32)
    if config.use_qlora:
        pack_linear_layers(model, step.dtype)
    trained: Any = model
    if adapter is not None:
        trained = get_peft_model(model, adapter, low_cpu_mem_usage=True)
        for weight in trained.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    if step.layout == "trl":
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    elif adapter is not None:
        fuse_adapters(trained)
    if step.checkpointing:
        trained.activation_checkpointing_enable()
        if adapter is not None:
            trained.enable_input_require_grads()
    if step.dtype != torch.float32:  # as accelerate does; CUDA's autocast turns itself off where CUDA is absent
        trained.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=step.dtype)(trained.forward))
    return trained.train()


class _Run(NamedTuple):
    """A model on fake tensors with its optimizer, as between two steps."""

    model: nn.Module
    config: SFTConfig
    layout: Layout
    weights: list[Any]
    update: Callable[[], Any]

    def measure(self, batch: dict[str, Any], ledger: Ledger, frozen: int) -> StepMemory:
        """Take a step; `frozen` bytes are those of the frozen weights."""
        if self.config.gradient_accumulation_steps == 1:
            for weight in self.weights:
                weight.grad = None
        resting = ledger.alive - frozen
        ledger.take_peak()
        total, count = LOSSES[self.layout](self.model, batch)
        forward = ledger.take_peak()
        (total / torch.as_tensor(count).clamp(min=1)).backward()
        del total, count
        backward = ledger.take_peak()
        nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm)
        self.update()
        peaks = (forward, backward, ledger.take_peak())
        return StepMemory(frozen, resting, PhasePeaks(*(peak - frozen for peak in peaks)))


def _make_optimizer(model: nn.Module, config: SFTConfig, weights: list[Any]) -> Callable[[], Any]:
    """A function that takes an optimizer step; it has been called once, so that the optimizer's state exists."""
    name = config.optimizer_type
    arguments = TrainingArguments(
        output_dir="unused", use_cpu=True, report_to="none", **({} if name is None else {"optim": name})
    )
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimizer = kind(weights, **options)
        optimizer.step()
    except Exception:  # it needs data or another device: count its usual state, two moments of each weight
        itemsize = 1 if "8bit" in (name or "") else 4
        kept = [torch.empty(2 * weight.numel() * itemsize, dtype=torch.uint8) for weight in weights]
        return kept.__len__  # which holds them
    return optimizer.step  # type: ignore[no-any-return]  # torch is untyped here


def _materialize(model: nn.Module) -> None:
    """Replace all weights and buffers, which are on the meta device, with fake tensors. Tied weights stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    with torch.no_grad():
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = (
                        nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_weight else empty,
                        tensor,  # so that its id stays its own
                    )
                kind[name] = made[id(tensor)][0]
