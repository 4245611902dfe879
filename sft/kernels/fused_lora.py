"""LoRA's linear layer as one autograd node: PEFT's own forward makes some ten passes over input and output."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import layer as lora
from torch import Tensor, nn

from sft.kernels.dropout import QuickDropout, apply_mask, draw_kept, spread


def fuse_adapters(model: nn.Module) -> int:
    """Compute every plain LoRA layer over an `nn.Linear` as one autograd node; returns how many there are.

    The values are PEFT's up to the order of rounding. A layer that is merged or disabled, has several active adapters
    or is a variant of LoRA (DoRA, say) uses PEFT's own forward. Dropout is `QuickDropout` in both.
    """
    replace_dropout(model)
    layers = [module for module in model.modules() if type(module) is lora.Linear and _is_plain(module)]
    for module in layers:
        module.forward = functools.partial(_forward, module, module.forward)
    return len(layers)


def replace_dropout(model: nn.Module) -> None:
    """Replace the dropout of every LoRA layer with `QuickDropout`."""
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
    low, high, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]  # (R, I), (O, R)
    dropout = module.lora_dropout[name]
    kept = None
    if isinstance(dropout, QuickDropout) and dropout.training and dropout.p:
        kept, scale = draw_kept(x.shape, dropout.p, x.device), scale / (1 - dropout.p)  # (..., I)
    out: Tensor = _LoraLinear.apply(x, kept, base.weight, base.bias, low, high, scale)
    # (N, O) -> (..., O)
    return out.view(*x.shape[:-1], -1)  # here: autograd forbids in-place changes of a view made inside the Function


class _LoraLinear(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """y = x W' + bias + s (z A') B' with z = keep * x; W and bias are frozen. g = dL/dy:

    dA = (s g B)' z;  dB = s g' (z A');  dx = g W + keep * (s g B) A

    Shapes: x (..., I), flattened to N rows; keep as x, None for all ones; W (O, I); A (R, I); B (O, R); y and g (N, O).
    s is PEFT's scaling times dropout's 1 / (1 - p). Products are in W's dtype, dA and dB in that of A and B.
    """

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
        rows = x.flatten(0, -2)  # (N, I)
        seen = rows if kept is None else apply_mask(rows, spread(kept.view(rows.shape), x.dtype))  # z: (N, I)
        narrow_a, narrow_b = a.to(weight.dtype), b.to(weight.dtype) * scale  # A (R, I), s B (O, R)
        inner = seen @ narrow_a.T  # z A': (N, R)
        out = nn.functional.linear(rows, weight, bias).addmm_(inner, narrow_b.T)  # x W' + bias + s (z A') B': (N, O)
        # x and not z: layers side by side (q, k, v) save the same x, so it is held once.
        ctx.save_for_backward(x, kept, inner, weight, narrow_a, narrow_b)
        ctx.scale, ctx.dtypes = scale, (a.dtype, b.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, inner, weight, a, b = ctx.saved_tensors
        grad, rows = grads[0], x.flatten(0, -2)  # g (N, O), x (N, I)
        mask = None if kept is None else spread(kept.view(rows.shape), x.dtype)
        inner_grad = grad @ b  # s g B: (N, R); `b` was saved times s
        a_grad = (inner_grad.T @ (rows if mask is None else apply_mask(rows, mask))).to(ctx.dtypes[0])  # dA: (R, I)
        b_grad = (grad.T @ inner).to(ctx.dtypes[1]).mul_(ctx.scale)  # dB = s g' (z A'): (O, R)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = grad @ weight  # g W: (N, I)
            if mask is None:
                x_grad.addmm_(inner_grad, a)  # + (s g B) A
            else:
                x_grad += apply_mask(inner_grad @ a, mask)  # + keep * (s g B) A
            x_grad = x_grad.view(x.shape)  # (..., I)
        return x_grad, None, None, None, a_grad, b_grad, None
