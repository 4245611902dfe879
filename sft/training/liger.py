"""Liger's kernels for norms, activations and rotations: whether a job uses them, and what they take in a fake step.

A job uses them on CUDA where `liger-kernel` is installed; transformers applies them when training starts. The head is
not Liger's.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from sft.training.layout import Layout

MODELS = "transformers.models."
USUAL_CAPABILITY = (8, 0)


def can_use_liger(layout: Layout, kind: str) -> bool:
    """Whether to use Liger's kernels for the layers: installed, on CUDA, unless the model's own logits are needed."""
    is_installed = bool(is_liger_kernel_available()) and importlib.util.find_spec("triton") is not None
    return layout != "logits" and kind == "cuda" and is_installed


@contextmanager
def standing_in_for_liger(model: nn.Module) -> Iterator[None]:
    """Let a model compute through Liger's functions, as in a job, with kernels that are not launched.

    The functions themselves allocate and keep tensors; a kernel writes into what it is given. So this holds for any
    model and any release of Liger. What Liger replaces in transformers is put back.
    """
    kernels: Any = importlib.import_module("triton.runtime.jit").KernelInterface
    places = {type(module).__module__ for module in model.modules()}
    spaces = [vars(sys.modules[place]) for place in places if place.startswith(MODELS)]
    before = [dict(space) for space in spaces]
    with ExitStack() as stack:
        stack.enter_context(patch.object(kernels, "__getitem__", lambda *_: _launch_nothing))
        if not torch.cuda.is_initialized():  # asking for it would take memory of a GPU that a job may use
            stack.enter_context(patch.object(torch.cuda, "get_device_capability", lambda *_: USUAL_CAPABILITY))
        try:
            apply_liger_kernel(model, {"fused_linear_cross_entropy": False})
            yield
        finally:
            for space, old in zip(spaces, before, strict=True):
                space.update(old)


def _launch_nothing(*args: Any, **options: Any) -> None:
    """A kernel that has been launched."""
