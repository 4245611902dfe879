"""A reference for torch's variable-length attention on CPUs, which have no kernel for it: SDPA of each document."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen  # noqa: F401 - registers the operations
from torch.nn.functional import scaled_dot_product_attention

CALLS: list[dict[str, Any]] = []  # arguments of the forward calls


def register_varlen_reference() -> None:
    """Make `torch_attn::_varlen_attn` and its backward run on CPU tensors of any dtype."""
    torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", _forward)
    torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", _backward)


def attend(query: Tensor, key: Tensor, value: Tensor, bounds: list[int], scale: float, window: list[int]) -> Tensor:
    """query (T, H, Dh), key and value (T, Hkv, Dh) -> (T, H, Dh): each token sees `window` = [before, after] others."""
    parts = []
    for q, k, v, seen in _split((query, key, value), bounds, window):
        parts.append(scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True).transpose(0, 1))
    return torch.cat(parts)


def _split(rows: tuple[Tensor, ...], bounds: list[int], window: list[int]) -> Iterator[tuple[Tensor, ...]]:
    """The documents: each tensor's part, (heads, L, Dh), and which tokens see which, (L, L)."""
    for start, end in itertools.pairwise(bounds):
        ahead = torch.arange(end - start)[None, :] - torch.arange(end - start)[:, None]  # j - i
        before, after = (steps if steps >= 0 else end - start for steps in window)
        yield *(x[start:end].transpose(0, 1) for x in rows), (ahead <= after) & (-ahead <= before)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    bounds = cu_seq_q.tolist()
    assert cu_seq_q.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k >= max(end - start for start, end in itertools.pairwise(bounds))
    assert bounds[0] == 0
    assert bounds[-1] == len(query)
    assert query.shape[-1] % 8 == 0
    assert scale is not None
    assert window_size is not None
    assert is_causal == (window_size == [-1, 0])
    CALLS.append({"window": window_size, "bounds": bounds, "longest": max_q})
    out = attend(query, key, value, bounds, scale, window_size)
    return out, query.new_empty(query.shape[1], len(query), dtype=torch.float32), torch.empty(2, dtype=torch.uint64)


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float,
    window_size: list[int],
) -> tuple[Tensor, ...]:
    """With P = softmax(scale Q K') and g = dL/dO:

    dV = P' g;  dS = P * (g V' - rowsum(g * O));  dQ = scale dS K;  dK = scale dS' Q
    """
    members = query.shape[1] // key.shape[1]
    grads: list[list[Tensor]] = [[], [], []]
    for q, k, v, g, o, seen in _split((query, key, value, grad_out, out), cu_seq_q.tolist(), window_size):
        wide_k, wide_v = (x.repeat_interleave(members, 0) for x in (k, v))  # (H, L, Dh)
        weights = (scale * q @ wide_k.mT).masked_fill(~seen, float("-inf")).softmax(-1)  # (H, L, L)
        scores = weights * (g @ wide_v.mT - (g * o).sum(-1, keepdim=True))
        found = (scale * scores @ wide_k, scale * scores.mT @ q, weights.mT @ g)  # (H, L, Dh) each
        for kept, grad, heads in zip(grads, found, (len(q), len(k), len(k)), strict=True):
            kept.append(grad.unflatten(0, (heads, -1)).sum(1).transpose(0, 1))
    return tuple(torch.cat(parts) for parts in grads)
