"""Documents concatenated into one row without padding, with attention inside each document only."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import pack_dataset

from sft.kernels.block_attention import attend_in_blocks, suits_blocks

DOCUMENT_ATTENTION = "sdpa_by_document"


def register_document_attention() -> None:
    """Register `DOCUMENT_ATTENTION` with transformers as an attention implementation."""
    AttentionInterface.register(DOCUMENT_ATTENTION, attend_by_document)
    AttentionMaskInterface.register(DOCUMENT_ATTENTION, _build_mask)


def attend_by_document(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Run SDPA once for each document: no (T, T) mask and no work across documents.

    In bf16 on a CPU `attend_in_blocks` is used, which takes half the time of SDPA's own kernel.

    Args:
        query: (1, H, T, Dh); key and value: (1, Hkv, T, Dh).
        attention_mask: used as it is when there are no document bounds (evaluation with padding, generation).
        sliding_window: number of positions a token attends to, itself included; None for all up to it.
        cu_seq_lens_q: bounds of the documents, from 0 to T. (documents + 1,)

    Returns:
        (1, T, H, Dh), as `sdpa_attention_forward` does.
    """
    if cu_seq_lens_q is None or attention_mask is not None or query.shape[0] != 1:
        if attention_mask is None and sliding_window is not None:
            attention_mask = _build_window_mask(query.shape[2], sliding_window, query.device)
        whole: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
        return whole, None
    in_blocks = suits_blocks(module, query, key, value, {**kwargs, "sliding_window": sliding_window})
    outputs = []
    # One split instead of a slice per document: each slice's gradient would be a zero tensor as long as the row.
    lengths = cu_seq_lens_q.diff().tolist()  # L of each document; they sum to T
    for parts in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        # parts: query (1, H, L, Dh), key and value (1, Hkv, L, Dh)
        if in_blocks:
            found = attend_in_blocks(parts[0][0], parts[1][0], parts[2][0], kwargs.get("scaling"))  # (H, L, Dh)
            outputs.append(found.transpose(0, 1)[None])  # (1, L, H, Dh)
            continue
        mask = None if sliding_window is None else _build_window_mask(parts[0].shape[2], sliding_window, query.device)
        outputs.append(sdpa_attention_forward(module, *parts, mask, **kwargs)[0])  # (1, L, H, Dh)
    return torch.cat(outputs, dim=1), None  # (1, T, H, Dh)


def _build_window_mask(length: int, sliding_window: int, device: torch.device) -> Tensor | None:
    """True where a token attends, (1, 1, T, T); None when the window covers the whole text."""
    if length <= sliding_window:
        return None
    behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]  # (T, T)
    return ((behind >= 0) & (behind < sliding_window))[None, None]  # query i sees key j if 0 <= i - j < window


def _build_mask(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """None for rows without padding, whose bounds `attend_by_document` knows; else SDPA's mask."""
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs
    )


def pack_rows(rows: Dataset, length: int) -> Dataset:
    """Pack rows into rows of `length` tokens by TRL's best fit; `seq_lengths` has the documents' lengths.

    If the rows have their numbers in `row`, `rows` lists the numbers of each packed row's documents.
    """
    columns = ["input_ids", "labels"]
    if "row" not in rows.column_names:
        return pack_dataset(rows.select_columns(columns), length)
    # TRL packs columns with one value per token, so the row number is repeated for each token and picked out after.
    spread = rows.with_format("arrow").map(_spread_numbers, batched=True).with_format(None)
    packed = pack_dataset(spread.select_columns([*columns, "rows"]), length)
    return packed.map(_gather_numbers, batched=True)


def _spread_numbers(table: pa.Table) -> pa.Table:
    lengths = table["input_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)  # (rows,)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)  # (rows + 1,)
    numbers = np.repeat(table["row"].to_numpy().astype(np.int32), lengths)  # (tokens,)
    return table.append_column("rows", pa.ListArray.from_arrays(offsets, numbers))


def _gather_numbers(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    # A document's first token in its packed row: 0, L1, L1 + L2, ...
    starts = ([0, *np.cumsum(lengths)[:-1]] for lengths in batch["seq_lengths"])
    return {"rows": [[numbers[at] for at in at_each] for numbers, at_each in zip(batch["rows"], starts, strict=True)]}
