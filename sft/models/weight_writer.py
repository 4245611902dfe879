"""Writes a model's weights as safetensors files, tensor by tensor and in any order, in constant memory."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import torch

from sft.models.weights import INDEX, WHOLE

SHARD_BYTES = 5 * 10**9  # the size that other programs expect, and that fits where files of 50 GB do not
ALIGNMENT = 8
NAMES = {  # torch's dtype: safetensors' name
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Spec(NamedTuple):
    """Dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        size: int = math.prod(self.shape) * self.dtype.itemsize
        return size


class _Place(NamedTuple):
    file: str
    offset: int
    spec: Spec


class WeightWriter:
    """Files of a model's weights, whose names and sizes are known before: `model.safetensors`, or shards and an index.

    The headers are written first, so each tensor goes to its place as soon as it is known and is kept by nobody.

    Args:
        folder: exists, and has no weights yet.
        tensors: the name, dtype and shape of each tensor, in the order of the files.
        shard_bytes: the most bytes a file holds; a larger tensor has a file of its own.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Spec], shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        shards = list(_split(tensors, shard_bytes))
        is_whole = len(shards) == 1
        self._places: dict[str, _Place] = {}
        for number, names in enumerate(shards, 1):
            file = WHOLE if is_whole else f"model-{number:05}-of-{len(shards):05}.safetensors"
            self._places |= self._write_header(file, {name: tensors[name] for name in names})
        if not is_whole:
            index = {
                "metadata": {"total_size": sum(spec.nbytes for spec in tensors.values())},
                "weight_map": {name: place.file for name, place in sorted(self._places.items())},
            }
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        self._left = {name: spec.nbytes for name, spec in tensors.items()}
        self._file: tuple[str, BinaryIO] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file:
            self._file[1].close()
        if kind is None and (left := [name for name, size in self._left.items() if size]):
            raise RuntimeError(f"{len(left)} tensors were not written, {left[0]} for one")

    def write(self, name: str, tensor: torch.Tensor, row: int = 0) -> None:
        """Write a tensor, or a part of it that begins at this row, in the dtype of its file."""
        place = self._places[name]
        values = tensor.detach().to("cpu", place.spec.dtype).contiguous()
        bytes_each_row = math.prod(place.spec.shape[1:]) * place.spec.dtype.itemsize
        file = self._open(place.file)
        file.seek(place.offset + row * bytes_each_row)
        file.write(memoryview(values.reshape(-1).view(torch.uint8).numpy()))
        self._left[name] -= values.nbytes

    def _open(self, name: str) -> BinaryIO:
        if self._file and self._file[0] == name:
            return self._file[1]
        if self._file:
            self._file[1].close()
        self._file = (name, (self._folder / name).open("r+b"))
        return self._file[1]

    def _write_header(self, file: str, tensors: dict[str, Spec]) -> Iterator[tuple[str, _Place]]:
        """Write a file's header; yields where each tensor goes. Wide numbers come first, so that all are aligned."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end, starts = 0, {}
        for name, spec in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
            starts[name] = end
            end += spec.nbytes
            header[name] = {"dtype": NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [starts[name], end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        with (self._folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
        for name, start in starts.items():
            yield name, _Place(file, 8 + len(text) + start, tensors[name])


def _split(tensors: Mapping[str, Spec], shard_bytes: int) -> Iterator[list[str]]:
    """Names of the tensors of each file: as many as fit, in order."""
    shard: list[str] = []
    size = 0
    for name, spec in tensors.items():
        if shard and size + spec.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += spec.nbytes
    yield shard
