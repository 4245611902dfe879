"""Causal attention of one document in blocks of queries, for bf16 on CPUs, where SDPA's own kernel is slow."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_NOT_PLAIN = ("dropout", "softcap", "sliding_window")

BLOCK = 128  # queries; those of a block are scored against the keys up to the block's end only


def suits_blocks(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether `attend_in_blocks` suits this layer and beats SDPA: plain causal attention in bf16 on a CPU."""
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_plain = is_causal and key.shape == value.shape and not any(options.get(name) for name in _NOT_PLAIN)
    return is_plain and query.device.type == "cpu" and query.dtype == torch.bfloat16


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """softmax(scale q k' + causal mask) v, products in the inputs' dtype; `scale` is 1 / sqrt(Dh) if None.

    Takes half the work of the full (T, T) square and keeps nothing of its size: the backward pass recomputes the
    attention weights block by block. A document of one block is faster by SDPA's kernel in fp32: one call, not ten.

    Args:
        query: (H, T, Dh).
        key: (Hkv, T, Dh), each head serving H / Hkv query heads; value like it.

    Returns:
        (H, T, Dh)
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if query.shape[1] <= BLOCK:
        q, k, v = (part[None].float() for part in (query, key, value))  # (1, H, T, Dh), k and v (1, Hkv, T, Dh)
        short: Tensor = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return short[0].to(query.dtype)  # (H, T, Dh)
    out: Tensor = _BlockAttention.apply(query, key, value, scale)
    return out


class _BlockAttention(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Forward and backward of one block of b queries against the S keys up to its end, with g = dL/dO.

    P = softmax(scale Q K'), O = P V
    dV = P' g;  dP = g V';  dS = P * (dP - rowsum(P * dP));  dQ = scale dS K;  dK = dS' (scale Q)

    Heads are grouped by the key head they share: G = Hkv groups of M = H / Hkv query heads.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads, length, width = query.shape
        groups = key.shape[0]
        scaled = (query * scale).view(groups, heads // groups, length, width)  # scale Q: (G, M, T, Dh)
        out = torch.empty_like(scaled)  # (G, M, T, Dh)
        for rows in _blocks(length):
            weights = _weigh(scaled, key, rows)  # P: (G, M * b, S)
            # O = P V: (G, M * b, S) @ (G, S, Dh) -> (G, M * b, Dh) -> (G, M, b, Dh)
            out[:, :, rows] = torch.bmm(weights, value[:, : rows.stop]).view_as(out[:, :, rows])
        ctx.save_for_backward(scaled, key, value)
        ctx.scale = scale
        return out.reshape(query.shape)  # (H, T, Dh)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value = ctx.saved_tensors
        groups, width = key.shape[0], key.shape[2]
        grad = grads[0].reshape(scaled.shape)  # g: (H, T, Dh) -> (G, M, T, Dh)
        query_grad = torch.empty_like(scaled)  # (G, M, T, Dh)
        # (G, T, Dh); every later block adds to a key's gradient: sums in fp32, as bf16 would lose the small terms.
        key_grad, value_grad = torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(key, dtype=torch.float32)
        for rows in _blocks(scaled.shape[2]):
            weights = _weigh(scaled, key, rows)  # P: (G, M * b, S)
            out_grad = grad[:, :, rows].reshape(groups, -1, width)  # g: (G, M * b, Dh)
            weight_grad = torch.bmm(out_grad, value[:, : rows.stop].transpose(1, 2))  # dP = g V': (G, M * b, S)
            # dS = P * (dP - rowsum(P * dP)): (G, M * b, S)
            score_grad = torch.ops.aten._softmax_backward_data(weight_grad, weights, -1, weights.dtype)
            # dS K, times scale at the end: (G, M * b, Dh) -> (G, M, b, Dh)
            query_grad[:, :, rows] = torch.bmm(score_grad, key[:, : rows.stop]).view_as(query_grad[:, :, rows])
            # dS' (scale Q) and P' g sum over the M query heads of a group and the b queries: (G, S, Dh)
            key_grad[:, : rows.stop] += torch.bmm(
                score_grad.transpose(1, 2), scaled[:, :, rows].reshape(groups, -1, width)
            )
            value_grad[:, : rows.stop] += torch.bmm(weights.transpose(1, 2), out_grad)
        return (
            query_grad.mul_(ctx.scale).reshape(grads[0].shape),  # (H, T, Dh)
            key_grad.to(key.dtype),  # (Hkv, T, Dh)
            value_grad.to(value.dtype),
            None,
        )


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _weigh(scaled: Tensor, key: Tensor, rows: slice) -> Tensor:
    """Attention weights of a block's queries over the keys up to its end. (G, M * b, S)"""
    groups, members, _, width = scaled.shape
    count = rows.stop - rows.start  # b
    # scale Q K': (G, M * b, Dh) @ (G, Dh, S) -> (G, M * b, S)
    scores = torch.bmm(scaled[:, :, rows].reshape(groups, -1, width), key[:, : rows.stop].transpose(1, 2))
    # Only the last b keys, the block's own, can lie after a query.
    ahead = torch.ones(count, count, dtype=torch.bool, device=key.device).triu_(1)  # (b, b)
    scores.view(groups, members, count, -1)[..., rows.start :].masked_fill_(ahead, float("-inf"))  # (G, M, b, b)
    return torch.softmax(scores, dim=-1)
