"""Causal attention of one document by blocks of queries, for bf16 on CPUs, where SDPA's own kernel is slow."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_NOT_PLAIN = ("dropout", "softcap", "sliding_window")

BLOCK = 64  # queries; a block looks at no key behind its last one


def suits_blocks(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether a layer's attention can go by blocks, and gains by it: plain and causal, in bf16 on a CPU."""
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_plain = is_causal and key.shape == value.shape and not any(options.get(name) for name in _NOT_PLAIN)
    return is_plain and query.device.type == "cpu" and query.dtype == torch.bfloat16


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """softmax(scale q k' + causal) v, products in the inputs' dtype; `scale` is 1 / sqrt(Dh) if None.

    Half the work of the whole square, and nothing of its size is kept: the backward pass forms the weights again.

    Args:
        query: (H, T, Dh).
        key: (Hkv, T, Dh), each head serving H / Hkv query heads; value like it.

    Returns:
        (H, T, Dh)
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _BlockAttention.apply(query, key, value, scale)
    return out


class _BlockAttention(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads, length, width = query.shape
        groups = key.shape[0]
        scaled = (query * scale).view(groups, heads // groups, length, width)
        out = torch.empty_like(scaled)
        for rows in _blocks(length):
            weights = _weigh(scaled, key, rows)
            out[:, :, rows] = torch.bmm(weights, value[:, : rows.stop]).view_as(out[:, :, rows])
        ctx.save_for_backward(scaled, key, value)
        ctx.scale = scale
        return out.reshape(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value = ctx.saved_tensors
        groups, width = key.shape[0], key.shape[2]
        grad = grads[0].reshape(scaled.shape)
        query_grad = torch.empty_like(scaled)
        key_grad, value_grad = torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(key, dtype=torch.float32)
        for rows in _blocks(scaled.shape[2]):
            weights = _weigh(scaled, key, rows)
            out_grad = grad[:, :, rows].reshape(groups, -1, width)
            weight_grad = torch.bmm(out_grad, value[:, : rows.stop].transpose(1, 2))
            score_grad = torch.ops.aten._softmax_backward_data(weight_grad, weights, -1, weights.dtype)
            query_grad[:, :, rows] = torch.bmm(score_grad, key[:, : rows.stop]).view_as(query_grad[:, :, rows])
            key_grad[:, : rows.stop] += torch.bmm(
                score_grad.transpose(1, 2), scaled[:, :, rows].reshape(groups, -1, width)
            )
            value_grad[:, : rows.stop] += torch.bmm(weights.transpose(1, 2), out_grad)
        return (
            query_grad.mul_(ctx.scale).reshape(grads[0].shape),
            key_grad.to(key.dtype),
            value_grad.to(value.dtype),
            None,
        )


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _weigh(scaled: Tensor, key: Tensor, rows: slice) -> Tensor:
    """Attention weights of a block's queries. (Hkv, H / Hkv * block, keys up to its end)"""
    groups, members, _, width = scaled.shape
    count = rows.stop - rows.start
    scores = torch.bmm(scaled[:, :, rows].reshape(groups, -1, width), key[:, : rows.stop].transpose(1, 2))
    ahead = torch.ones(count, count, dtype=torch.bool, device=key.device).triu_(1)
    scores.view(groups, members, count, -1)[..., rows.start :].masked_fill_(ahead, float("-inf"))
    return torch.softmax(scores, dim=-1)
