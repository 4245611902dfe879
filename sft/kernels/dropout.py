"""Dropout for CPUs, where most of what torch's own takes goes into drawing a random number for each element."""

from typing import Any

import torch
from torch import Tensor, nn

STEPS = 2**16  # a probability is taken as a number of these
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # an element's bits, by its size in bytes


class QuickDropout(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """As `nn.Dropout`, from a quarter as many random numbers: one of 64 bits of torch's generator serves four elements.

    An element is dropped with probability `p`, which is the `rate` asked for rounded to 1/65536; those kept are scaled
    by 1 / (1 - p). Like torch's own, a run draws the same again from the same state of the generator.

    Args:
        rate: from 0, below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.p = quantize(rate)

    def forward(self, x: Tensor) -> Tensor:
        """x with some of its elements 0 and the others scaled, in training."""
        if not self.training or not self.p:
            return x
        dropped: Tensor = _Dropout.apply(x, draw_kept(x.shape, self.p), 1 / (1 - self.p))
        return dropped


def quantize(rate: float) -> float:
    """The nearest probability below 1 that can be drawn."""
    return min(round(rate * STEPS), STEPS - 1) / STEPS


def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """True for what is kept: each element is dropped with probability `p`, a multiple of 1/65536."""
    count = shape.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return draws[:count].view(shape) >= round(p * STEPS) - STEPS // 2


def spread(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as one of all bits of an element of `dtype`: a product with truth values takes ten times as long."""
    return kept.to(BITS[dtype.itemsize]).neg_()


def apply_mask(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask of `spread` keeps it, else 0."""
    return (x.view(mask.dtype) & mask).view(x.dtype)


class _Dropout(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return apply_mask(x, spread(kept, x.dtype)).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return apply_mask(grads[0], spread(kept, grads[0].dtype)).mul_(ctx.scale), None, None
