"""Reads single weights of a model's files, and how transformers brings them into the form of the model."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from sft.models.weights import list_weight_files, read_shapes

READ_BYTES = 2**28  # read at once of a tensor that is copied


class Unit(NamedTuple):
    """Weights of the files that become weights of the model together, such as the experts of a layer.

    Attributes:
        sources: names in the files, with the converter's pattern that each one matches.
        names: names in the model.
    """

    sources: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    converter: Any


class WeightReader:
    """The weights in a model's files. They are read one by one and not mapped, so that no memory stays in use."""

    def __init__(self, path: Path, subject: str) -> None:
        self._files = list_weight_files(path, subject)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, Path] = {}
        for file in self._files:
            for name, (_, shape) in read_shapes(file).items():
                self.shapes[name], self._places[name] = tuple(shape), file
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor, in the dtype of its file."""
        tensor: torch.Tensor = self._find(name).get_tensor(name)
        return tensor

    def read_in_parts(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Read a tensor in parts of at most READ_BYTES, each with the number of its first row."""
        shape = self.shapes[name]
        if not shape or not shape[0]:
            yield 0, self.read(name)
            return
        part = self._find(name).get_slice(name)
        rows = max(READ_BYTES // max(8 * int(torch.Size(shape[1:]).numel()), 1), 1)
        for row in range(0, shape[0], rows):
            yield row, part[row : min(row + rows, shape[0])]

    def _find(self, name: str) -> Any:
        file = self._places[name]
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(file, framework="pt", backend="pread"))
        return self._open[file]


def list_units(model: PreTrainedModel, names: list[str]) -> list[Unit]:
    """List which of the files' weights become which of the model's, as transformers' loading does.

    Weights that the model has no place for are left out.

    Args:
        model: loaded by `from_pretrained`, which keeps the conversions that its files need; it may be empty.
        names: of all weights in the files.
    """
    state = model.state_dict()
    conversions = getattr(model, "_weight_conversions", None) or []
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    found: dict[str, list[tuple[str, str]]] = {}
    used: dict[str, Any] = {}
    for name in sorted(names, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        if renamed in state:
            found.setdefault(renamed, []).append((name, name if pattern is None else pattern))
            used[renamed] = None if pattern is None else by_pattern[pattern]
    return [Unit(tuple(sources), (first,), used[first]) for first, sources in found.items()]


def convert(model: PreTrainedModel, unit: Unit, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's weights, by name, of a unit's weights, which are taken out of `tensors`."""
    first = unit.names[0]
    if unit.converter is None:
        return {first: tensors.pop(unit.sources[-1][0])}
    converter = copy.deepcopy(unit.converter)
    for name, pattern in unit.sources:
        converter.add_tensor(first, name, pattern, tensors.pop(name))
    made = converter.convert(first, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
