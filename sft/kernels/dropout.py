"""Dropout with a quarter of the random numbers on CPUs, where drawing them takes most of the time of torch's own."""

from typing import Any

import torch
from torch import Tensor, nn

STEPS = 2**16  # an element is decided by 16 random bits, so a probability is a multiple of 1 / 65536
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # an integer as wide as an element of so many bytes


class QuickDropout(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """`nn.Dropout` that takes four elements' masks from one 64-bit number of torch's generator on a CPU.

    y = keep * x / (1 - p), with keep = 0 with probability `p`, which is `rate` rounded to 1 / 65536. As with torch's
    own, the same generator state gives the same mask.

    Args:
        rate: from 0, below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.p = quantize(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Drop and scale elements of x while training; x itself in evaluation."""
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.p)
        dropped: Tensor = _Dropout.apply(x, draw_kept(x.shape, self.p), 1 / (1 - self.p))
        return dropped


def quantize(rate: float) -> float:
    """The nearest probability below 1 that can be drawn."""
    return min(round(rate * STEPS), STEPS - 1) / STEPS


def draw_kept(shape: torch.Size, p: float, device: torch.device | None = None) -> Tensor:
    """Boolean mask of this shape, False with probability `p`, a multiple of 1 / 65536; on the CPU if no device."""
    if device is not None and device.type != "cpu":
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - p)
    count = shape.numel()
    # Each int64 is read as four int16, uniform from -32768 to 32767: below p * 65536 - 32768 with probability p.
    # (ceil(n / 4),) int64 -> (4 ceil(n / 4),) int16, of which the first n are used.
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return draws[:count].view(shape) >= round(p * STEPS) - STEPS // 2


def spread(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """On a CPU widen a boolean mask to all bits (-1) or none (0): multiplying by booleans takes ten times as long."""
    if kept.device.type != "cpu":
        return kept
    return kept.to(BITS[dtype.itemsize]).neg_()


def apply_mask(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask from `spread` keeps it, else 0: a bitwise and of x's bits, or a product with a boolean mask."""
    if mask.dtype == torch.bool:
        return x * mask
    return (x.view(mask.dtype) & mask).view(x.dtype)


class _Dropout(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """y = scale * keep * x, so dx = scale * keep * dy; keeps the boolean mask, one byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return apply_mask(x, spread(kept, x.dtype)).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return apply_mask(grads[0], spread(kept, grads[0].dtype)).mul_(ctx.scale), None, None
