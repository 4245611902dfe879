"""The memory of a training step of a whole model, from fake steps of a few of its layers.

Layers of a kind take the same, so bytes grow linearly with their number:

    bytes(L) = bytes(n2) + (L - n2) / (n2 - n1) * (bytes(n2) - bytes(n1))
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from peft import LoraConfig
from transformers import PreTrainedModel

from sft.adapting.adaptation import Adaptation
from sft.adapting.adapter_files import SETTINGS
from sft.adapting.adapters import plan_adapter
from sft.config import SFTConfig
from sft.models.layer_stack import find_stack
from sft.models.library_warnings import collecting_warnings
from sft.training.fake_step import Step, StepMemory, run_fake_steps

logger = logging.getLogger(__name__)

FEW = 2  # layers of the smaller model, at least; the larger one has one more of each kind
# Bytes held for each byte of activations. Between tensors the C library leaves gaps that other tensors do not fit into:
# 1.0 to 1.45 measured, most with the largest batches. CUDA's peak is counted by tensors.
GAPS = {"cpu": 1.4, "cuda": 1.0}
RECOMPUTED_GAPS = {"cpu": 1.05, "cuda": 1.0}  # `return_large_blocks`


class StepNeed(NamedTuple):
    """Bytes of a step: of the frozen model, of what is trained between batches, and at most beside the frozen model."""

    frozen: int
    resting: int
    held: int  # with the gaps that the allocator leaves between tensors


def measure_steps(
    empty: PreTrainedModel, config: SFTConfig, steps: Sequence[Step], adaptation: Adaptation | None = None
) -> list[StepNeed] | None:
    """What these steps of the model take; None if one of its operations can't run on fake tensors.

    Args:
        empty: the model on the meta device; it is left unchanged.
        steps: they differ in their rows alone.
        adaptation: what `plan_adapter` found for this model, where that is known.
    """
    adapter = find_adapter_settings(empty, config, adaptation)
    few, many, layers = _choose_counts(empty)

    def run(count: int) -> list[StepMemory]:
        return run_fake_steps(_copy_first(empty, count), config, copy.deepcopy(adapter), steps)

    try:
        with collecting_warnings(), _without_tracebacks():
            first = run(few)
            second = run(many) if many > few else first
    except Exception as error:  # an operation that depends on the data of a tensor, or a library's own refusal
        logger.info("No step of this model could be made on fake tensors: %s", str(error).partition("\n")[0])
        return None
    gaps = find_gaps(steps[0].kind, steps[0].checkpointing)
    return [_extend(*pair, few, many, layers, gaps) for pair in zip(first, second, strict=True)]


def find_gaps(kind: str, checkpointing: bool) -> float:
    """Bytes held for each byte of activations."""
    return (RECOMPUTED_GAPS if checkpointing else GAPS)[kind]


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Torch logs the traceback of an operation that fails on fake tensors, though whoever called it goes on."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def find_adapter_settings(
    empty: PreTrainedModel, config: SFTConfig, adaptation: Adaptation | None = None
) -> LoraConfig | None:
    """PEFT's settings of the adapter that the job trains; None if it trains the whole model."""
    if not config.use_lora:
        return None
    folder = Path(config.adapter_path) if config.adapter_path else None
    if folder is None or not (folder / SETTINGS).is_file():
        return (adaptation or plan_adapter(empty, config)).settings
    settings: LoraConfig = LoraConfig.from_pretrained(str(folder))
    settings.inference_mode, settings.init_lora_weights = False, True
    return settings


def _choose_counts(model: PreTrainedModel) -> tuple[int, int, int]:
    """Numbers of layers of the two models to run, and of the whole model."""
    stack = find_stack(model)
    if stack is None:
        return 1, 1, 1
    few, layers = max(stack.first_of_each_kind, FEW), len(stack.layers)
    many = few + stack.first_of_each_kind
    return (few, many, layers) if many < layers else (layers, layers, layers)


def _copy_first(empty: PreTrainedModel, count: int) -> PreTrainedModel:
    """A copy with the first layers only."""
    stack = find_stack(empty)
    if stack is None or count == len(stack.layers):
        return copy.deepcopy(empty)
    setattr(stack.owner, stack.name, stack.layers[:count])
    try:
        return copy.deepcopy(empty)
    finally:
        setattr(stack.owner, stack.name, stack.layers)


def _extend(first: StepMemory, second: StepMemory, few: int, many: int, layers: int, gaps: float) -> StepNeed:
    factor = (layers - many) / (many - few) if many > few else 0.0

    def extend(before: int, after: int) -> int:
        return int(after + factor * (after - before))

    resting = extend(first.resting, second.resting)
    peak = max(extend(before, after) for before, after in zip(first.peaks, second.peaks, strict=True))
    return StepNeed(extend(first.frozen, second.frozen), resting, int(resting + gaps * (peak - resting)))
