"""Checks that weights, in a file or a model, are finite. Works without torch, as the API checks files too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from torch import nn

CHUNK_BYTES = 2**24
# By safetensors' dtype: bytes per number, and the exponent's bits in its highest and next byte, which are all set
# only in NaN and infinities. Numbers are little-endian.
FORMATS = {"F64": (8, 0x7F, 0xF0), "F32": (4, 0x7F, 0x80), "BF16": (2, 0x7F, 0x80), "F16": (2, 0x7C, 0x00)}


def find_not_finite(path: Path, most_bytes: int | None = None) -> str | None:
    """Find the first tensor of an intact safetensors file that holds NaN or an infinity.

    Args:
        most_bytes: check at most so many bytes, in whole tensors.
    """
    left = most_bytes
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        tensors = [(facts["data_offsets"][0], name, facts) for name, facts in header.items() if name != "__metadata__"]
        for start, name, facts in sorted(tensors, key=lambda tensor: tensor[:2]):
            size = facts["data_offsets"][1] - start
            if left is not None and (left := left - size) < 0:
                return None
            file.seek(8 + length + start)
            if facts["dtype"] in FORMATS and not all(_are_finite(part, facts["dtype"]) for part in _read(file, size)):
                return str(name)
    return None


def find_broken_weight(model: "nn.Module", with_trained: bool) -> str | None:
    """Find the first weight of a model that holds NaN or an infinity, including trained weights or not."""
    for name, parameter in model.named_parameters():
        if not with_trained and parameter.requires_grad:
            continue
        # Of a split weight this process's share: the others may not be looking.
        weight = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            return str(name).removeprefix("base_model.model.").replace(".base_layer", "")
    return None


def _read(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (part := file.read(min(size, CHUNK_BYTES))):
        size -= len(part)
        yield part


def _are_finite(numbers: bytes, dtype: str) -> bool:
    """Checks the highest byte of each number; the next one only if a number is very large."""
    width, high, low = FORMATS[dtype]
    highest = numbers[width - 1 :: width].translate(_mark(high))
    if 1 not in highest:
        return True
    next_ones = numbers[width - 2 :: width].translate(_mark(low))
    return not int.from_bytes(highest, "little") & int.from_bytes(next_ones, "little")


def _mark(bits: int) -> bytes:
    """Translation table of bytes: 1 if a byte has all these bits, else 0."""
    return bytes(byte & bits == bits for byte in range(256))
