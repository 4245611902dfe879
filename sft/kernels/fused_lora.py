"""LoRA's linear layer as one node of autograd, for CPUs: PEFT's own forward makes some ten passes over its result."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import layer as lora
from torch import Tensor, nn

from sft.kernels.dropout import QuickDropout, apply_mask, draw_kept, spread


def fuse_adapters(model: nn.Module) -> int:
    """Let every plain LoRA layer over an `nn.Linear` compute as one node; returns how many there are.

    The values are PEFT's, in another order of rounding. A layer that is merged or disabled at the time, has several
    active adapters or a variant of LoRA (DoRA, say) goes PEFT's own way. Dropout is `QuickDropout` in both.
    """
    replace_dropout(model)
    layers = [module for module in model.modules() if type(module) is lora.Linear and _is_plain(module)]
    for module in layers:
        module.forward = functools.partial(_forward, module, module.forward)
    return len(layers)


def replace_dropout(model: nn.Module) -> None:
    """Let every adapter drop by `QuickDropout`."""
    for module in model.modules():
        if isinstance(module, lora.LoraLayer):
            for name, dropout in module.lora_dropout.items():
                if type(dropout) is nn.Dropout:
                    module.lora_dropout[name] = QuickDropout(dropout.p).train(dropout.training)


def _is_plain(module: lora.Linear) -> bool:
    has_bias = any(getattr(low, "bias", None) is not None for low in module.lora_B.values())
    return type(module.base_layer) is nn.Linear and not (module.lora_variant or module.fan_in_fan_out or has_bias)


def _forward(module: lora.Linear, usual: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or module.merged or args or kwargs or len(active) != 1:
        return usual(x, *args, **kwargs)
    name = active[0]
    base = module.base_layer
    x = x.to(base.weight.dtype)
    low, high, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    dropout = module.lora_dropout[name]
    kept = None
    if isinstance(dropout, QuickDropout) and dropout.training and dropout.p:
        kept, scale = draw_kept(x.shape, dropout.p), scale / (1 - dropout.p)
    out: Tensor = _LoraLinear.apply(x, kept, base.weight, base.bias, low, high, scale)
    return out.view(*x.shape[:-1], -1)  # here, as a view made within could not be changed in place


class _LoraLinear(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """x W' + b + s (z A') B', z being x where it is `kept`: (..., I) to (N, O), with W (O, I), A (R, I), B (O, R)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kept: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        seen = rows if kept is None else apply_mask(rows, spread(kept.view(rows.shape), x.dtype))
        narrow_a, narrow_b = a.to(weight.dtype), b.to(weight.dtype) * scale
        inner = seen @ narrow_a.T  # (N, R)
        out = nn.functional.linear(rows, weight, bias).addmm_(inner, narrow_b.T)
        # x rather than what is left of it: layers side by side have it in common.
        ctx.save_for_backward(x, kept, inner, weight, narrow_a, narrow_b)
        ctx.scale, ctx.dtypes = scale, (a.dtype, b.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, inner, weight, a, b = ctx.saved_tensors
        grad, rows = grads[0], x.flatten(0, -2)  # (N, O), (N, I)
        mask = None if kept is None else spread(kept.view(rows.shape), x.dtype)
        inner_grad = grad @ b  # (N, R), the scale in it
        a_grad = (inner_grad.T @ (rows if mask is None else apply_mask(rows, mask))).to(ctx.dtypes[0])
        b_grad = (grad.T @ inner).to(ctx.dtypes[1]).mul_(ctx.scale)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = grad @ weight
            if mask is None:
                x_grad.addmm_(inner_grad, a)
            else:
                x_grad += apply_mask(inner_grad @ a, mask)
            x_grad = x_grad.view(x.shape)
        return x_grad, None, None, None, a_grad, b_grad, None
