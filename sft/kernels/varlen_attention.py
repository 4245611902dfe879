"""Attention inside each document of a row, by torch's variable-length kernel for CUDA devices of sm_80 and newer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from sft.kernels.packing import attend_by_document

VARLEN_ATTENTION = "varlen"
MIN_CAPABILITY = (8, 0)
HALF = (torch.float16, torch.bfloat16)
MAX_WIDTH = 256  # of a head
WIDE = 192  # backward passes of wider heads need the shared memory of sm_80 or sm_90
ROOMY = ((8, 0), (9, 0), (10, 0))
ALIGNMENT = 8  # a head's width must be a multiple of it; zeros are added


class NotVarlen(ValueError):
    """A layer's attention that the variable-length kernel does not compute; the message is the reason."""


def register_varlen_attention() -> None:
    """Register `VARLEN_ATTENTION` with transformers as an attention implementation.

    It has no mask function: transformers would look at `position_ids` for one, which waits for the device.
    """
    AttentionInterface.register(VARLEN_ATTENTION, attend_varlen)


def find_obstacle(device: torch.device) -> str | None:
    """Why this device can't run the kernel, as the end of a sentence; None if it can."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401 - only whether there is one
    except ImportError:
        return f"torch {torch.__version__} has no variable-length attention"
    return find_lack(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None


def find_lack(capability: tuple[int, int]) -> str | None:
    """What a CUDA device of this compute capability lacks for the kernel, as the end of a sentence; None if nothing."""
    if capability >= MIN_CAPABILITY:
        return None
    needed, there = (f"{major}.{minor}" for major, minor in (MIN_CAPABILITY, capability))
    return f"it needs a GPU of compute capability {needed}, and this one has {there}"


def attend_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend inside each document, without padding, a (T, T) mask or a wait for the device.

    Without document bounds (a single row, in trials and generation) it is SDPA.

    Args:
        query: (1, H, T, Dh); key: (1, Hkv, T, Dh); value: (1, Hkv, T, Dv), with Hkv dividing H.
        sliding_window: number of positions a token attends to, itself included; None for all up to it.
        cu_seq_lens_q: bounds of the documents, from 0 to T, int32. (documents + 1,)
        max_length_q: tokens of the longest document; T serves as well.

    Returns:
        (1, T, H, Dv), as `sdpa_attention_forward` does.

    Raises:
        NotVarlen: the kernel does not compute this layer (soft caps, sinks, position biases, dropout, fp32).
    """
    from torch.nn.attention.varlen import varlen_attn

    check_options(kwargs)
    if cu_seq_lens_q is None:
        if query.shape[0] > 1 or (query.shape[2] not in (1, key.shape[2])):
            raise NotVarlen("several rows, or part of one, have no bounds")
        options = {**kwargs, "dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return attend_by_document(module, query, key, value, attention_mask, sliding_window, **options)
    query, key, value = _cast(query, key, value)
    check_direction(module, is_causal)
    check_dropout(module, dropout)
    if query.device.type == "cuda":
        check_kernel(query, value, query.dtype, torch.cuda.get_device_capability(query.device))
    width, value_width, longest = query.shape[-1], value.shape[-1], max_length_q or query.shape[2]
    aligned = -(-max(width, value_width) // ALIGNMENT) * ALIGNMENT
    # window_size counts the positions before and after a token, -1 standing for all.
    before = -1 if sliding_window is None or sliding_window >= longest else sliding_window - 1
    query, key, value = (
        _widen(part, aligned).squeeze(0).transpose(0, 1) for part in (query, key, value)
    )  # (T, heads, Dh)
    out: Tensor = varlen_attn(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        longest,
        longest,
        scale=width**-0.5 if scaling is None else scaling,
        window_size=(before, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.unsqueeze(0).narrow(-1, 0, value_width), None


def _cast(*parts: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's dtype, as SDPA is: torch's list of operations for autocast does not have the kernel."""
    device = parts[0].device.type
    if torch.is_autocast_enabled(device):
        return tuple(part.to(torch.get_autocast_dtype(device)) for part in parts)
    return parts


def check_options(options: Mapping[str, Any]) -> None:
    """Raise NotVarlen for an option of a layer's attention that changes its scores."""
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise NotVarlen(f"a layer's attention has {name}")


def check_direction(module: nn.Module, is_causal: bool | None) -> None:
    """Raise NotVarlen for a layer that attends to later tokens."""
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NotVarlen("its layers attend to later tokens")


def check_dropout(module: nn.Module, rate: float) -> None:
    """Raise NotVarlen for a layer in training that drops attention weights."""
    if rate and module.training:
        raise NotVarlen(f"its layers drop attention weights (at a rate of {rate:g})")


def check_kernel(query: Tensor, value: Tensor, dtype: torch.dtype, capability: tuple[int, int]) -> None:
    """Raise NotVarlen for what the kernel does not take on a CUDA device of this compute capability.

    Args:
        query: (..., Dh); value: (..., Dv).
        dtype: of the computation.
    """
    if lack := find_lack(capability):
        raise NotVarlen(lack)
    if dtype not in HALF:
        raise NotVarlen("it needs bf16 or fp16, and mixed_precision is none")
    width = max(query.shape[-1], value.shape[-1])
    if width > MAX_WIDTH or (width > WIDE and capability not in ROOMY):
        raise NotVarlen(f"its heads are {width} wide, more than this GPU's kernel takes")


def _widen(part: Tensor, width: int) -> Tensor:
    """Add zeros up to this width; scores and the values that are kept stay the same."""
    missing = width - part.shape[-1]
    return nn.functional.pad(part, (0, missing)) if missing else part
