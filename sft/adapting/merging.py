"""Merges an adapter into its base model's files: W + scale * B @ A, layer by layer, in constant memory.

The base model is built without weights and given the adapter by PEFT. Then each adapted layer in turn gets its weights
from the files, PEFT merges it, and the result goes to its place in the new files; other weights are copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from sft.adapting.hollow_model import (
    META,
    Unmergeable,
    build_base,
    list_places,
    settle_names,
    settle_ties,
    take_out,
    wrap,
)
from sft.errors import MergeFailed
from sft.models.model_class import build_empty, find_model_class
from sft.models.model_settings import read_settings
from sft.models.weight_reader import Unit, WeightReader, convert, list_units
from sft.models.weight_writer import SHARD_BYTES, Spec, WeightWriter

NUMBER_BYTES = 4  # merging is done in fp32
COPIES = 4  # of a layer's weights while it is merged: read, converted, what is added, and its parts
WHOLE_COPIES = 1.5  # of a whole model's weights: those of one layer at a time are changed


def plan_merge(path: Path, adapter_dir: Path, subject: str) -> "Merge | WholeMerge":
    """Plan the merge of an adapter into its base model: layer by layer, or in memory where that is not possible.

    Args:
        path: folder of the base model.
        adapter_dir: folder of the adapter.
        subject: the beginning of messages about the base model.

    Raises MergeFailed if there is too little memory.
    """
    try:
        merge: Merge | WholeMerge = Merge(path, adapter_dir, subject)
    except Unmergeable as error:
        merge = WholeMerge(path, adapter_dir, subject, str(error))
    free_bytes = psutil.virtual_memory().available
    if merge.needed_bytes > free_bytes:
        raise MergeFailed(
            f"merging needs {merge.needed_bytes / 1e9:.1f} GB of main memory{merge.reason} and {free_bytes / 1e9:.1f} "
            "GB are free; merge the adapter on another machine, with `merge_and_unload` of PEFT"
        )
    return merge


@dataclass
class Group:
    """Weights that are merged and written together.

    Attributes:
        units: what is read from the base model's files.
        names: of all the weights, in the model.
        wrappers: PEFT's layers that are merged into them.
    """

    units: list[Unit] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    wrappers: list[Any] = field(default_factory=list)


class Merge:
    """A merge that is planned and not yet done.

    Attributes:
        model: the merged model without the weights that come from the files, with its configuration.
        tensors: name, dtype and shape of each weight in the new files, in the order of the base model's.
        size: bytes of the new files.
        needed_bytes: memory that merging the largest layer takes, beside the adapter.

    Args:
        path: folder of the base model.
        adapter_dir: folder of the adapter.
        subject: the beginning of messages about the base model.

    Raises:
        Unmergeable: with a reason.
    """

    reason = ""

    def __init__(self, path: Path, adapter_dir: Path, subject: str) -> None:
        settings = read_settings(path, subject)
        if getattr(settings, "quantization_config", None):
            raise Unmergeable("the base model is stored quantized")
        self._stored = settings.dtype or torch.float32
        self._path, self._subject = path, subject
        with WeightReader(path, subject) as reader:
            self._shapes = reader.shapes
        self.model = build_base(path, subject)
        units = settle_names(self.model, list_units(self.model, list(self._shapes)), self._shapes)
        self._base = {name: place[0] for name, place in list_places(self.model).items()}
        self._wrappers = wrap(self.model, adapter_dir)
        settle_ties(self.model)
        state = dict(self.model.state_dict())
        kept = remove_tied_weights_from_state_dict(dict(state), self.model)
        for name in self.model._keys_to_ignore_on_save or ():
            kept.pop(name, None)
        self._kept = set(kept)
        self._places = list_places(self.model)
        self._groups = list(self._group(units, state))
        self.tensors = dict(self._plan())
        if self.tensors.keys() != revert_weight_conversion(self.model, _empty(kept)).keys():
            raise Unmergeable("its weights are not converted layer by layer")
        merged = (group for group in self._groups if group.wrappers)
        sizes = [sum(state[name].numel() for name in group.names) for group in merged]
        self.needed_bytes = NUMBER_BYTES * COPIES * max(sizes, default=0)
        self.size = sum(spec.nbytes for spec in self.tensors.values())

    def write(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        """Merge, and write weights and configuration into a folder."""
        reading, writing = WeightReader(self._path, self._subject), WeightWriter(folder, self.tensors, shard_bytes)
        with reading as reader, writing as writer, torch.no_grad():
            for group in self._groups:
                if self._is_copied(group):
                    for name in self._list_outputs(group):
                        for row, part in reader.read_in_parts(name):
                            writer.write(name, _round(part, self.tensors[name].dtype), row)
                else:
                    for name, tensor in self._merge(group, reader).items():
                        writer.write(name, _round(tensor, self.tensors[name].dtype))
        config = self.model.config
        config.dtype = str(self._stored).removeprefix("torch.")
        config.architectures = [type(self.model).__name__]
        config.save_pretrained(folder)

    def _group(self, units: list[Unit], state: dict[str, torch.Tensor]) -> Iterator[Group]:
        """Join what belongs together: what is converted together, tied, or below one of PEFT's layers."""
        owners: dict[str, str] = {}

        def find(key: str) -> str:
            while owners.setdefault(key, key) != key:
                key = owners[key]
            return key

        for name in state:
            owners[find(name)] = find(f"={id(self._places[name][0])}")
            if wrapper := self._find_wrapper(name):
                owners[find(name)] = find(f"+{wrapper}")
        for unit in units:
            keys = [f"={id(self._base[name])}" for name in unit.names]
            for key in keys:
                owners[find(key)] = find(keys[0])
        groups: dict[str, Group] = {}
        for name in state:
            groups.setdefault(find(name), Group()).names.append(name)
        lacking = {id(place[0]) for place in self._places.values() if place[0].device == META}
        for unit in units:
            if any(id(self._base[name]) in lacking for name in unit.names):
                groups[find(f"={id(self._base[unit.names[0]])}")].units.append(unit)
        for path, wrapper in self._wrappers.items():
            if (owner := find(f"+{path}")) in groups:
                groups[owner].wrappers.append(wrapper)
        yield from groups.values()

    def _find_wrapper(self, name: str) -> str | None:
        """The path of PEFT's layer that a weight is in."""
        parts = name.split(".")
        paths = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((path for path in paths if path in self._wrappers), None)

    def _plan(self) -> Iterator[tuple[str, Spec]]:
        """Name, dtype and shape of each tensor of the new files."""
        for group in self._groups:
            read = {id(self._base[name]) for unit in group.units for name in unit.names}
            for name in group.names:
                tensor = self._places[name][0]
                if tensor.device == META and id(tensor) not in read:
                    raise Unmergeable(f"{name} is neither in the base model's files nor in the adapter's")
            for name, tensor in self._revert(group, _empty(self._state(group))).items():
                dtype = self._stored if tensor.is_floating_point() else tensor.dtype
                yield name, Spec(dtype, tuple(tensor.shape))

    def _list_outputs(self, group: Group) -> list[str]:
        return list(self._revert(group, _empty(self._state(group))))

    def _state(self, group: Group) -> dict[str, torch.Tensor]:
        return {name: self._places[name][0].detach() for name in group.names}

    def _revert(self, group: Group, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of the files, of a group's in the model."""
        kept = {name: tensor for name, tensor in state.items() if name in self._kept}
        made: dict[str, torch.Tensor] = revert_weight_conversion(self.model, kept) if kept else {}
        return made

    def _is_copied(self, group: Group) -> bool:
        """Whether a group's weights are in the new files as they are in the base model's."""
        if group.wrappers or not group.units or any(self._places[name][0].device != META for name in group.names):
            return False
        return all(self._shapes.get(name) == self.tensors[name].shape for name in self._list_outputs(group))

    def _merge(self, group: Group, reader: WeightReader) -> dict[str, torch.Tensor]:
        """Read a group's weights, let PEFT merge its layers, and bring the result into the form of the files."""
        former = {name: self._places[name] for name in group.names}
        read: dict[int, nn.Parameter | torch.Tensor] = {}
        for unit in group.units:
            tensors = {name: _widen(reader.read(name)) for name, _ in unit.sources}
            for name, value in convert(self.model, unit, tensors).items():
                read[id(self._base[name])] = value.clone() if value._is_view() else value
        for name, (old, owners) in former.items():
            if old.device == META:
                self._put(name, read, old, owners)
        for wrapper in group.wrappers:
            take_out(wrapper, merge=True)
        state = {name: getattr(*former[name][1][0]).detach() for name in group.names}
        made = self._revert(group, state)
        for old, owners in former.values():
            for module, attribute in owners:
                setattr(module, attribute, old)
        return made

    def _put(self, name: str, read: dict[int, Any], old: torch.Tensor, owners: list[tuple[nn.Module, str]]) -> None:
        value = read[id(old)]
        if value.shape != old.shape:
            raise Unmergeable(f"{name} has another shape in the files than in the model")
        if isinstance(old, nn.Parameter) and not isinstance(value, nn.Parameter):
            value = read[id(old)] = nn.Parameter(value, requires_grad=False)
        for module, attribute in owners:
            setattr(module, attribute, value)


class WholeMerge:
    """A merge in memory, for models whose weights do not become those of their layers one by one."""

    def __init__(self, path: Path, adapter_dir: Path, subject: str, why: str) -> None:
        self._path, self._adapter_dir, self._subject = path, adapter_dir, subject
        numbers = sum(tensor.numel() for tensor in build_empty(path, subject).parameters())
        self._stored = read_settings(path, subject).dtype or torch.float32
        self.size = numbers * self._stored.itemsize
        self.needed_bytes = int(NUMBER_BYTES * WHOLE_COPIES * numbers)
        self.reason = f", as {why},"

    def write(self, folder: Path) -> None:
        """Merge, and write weights and configuration into a folder."""
        settings = read_settings(self._path, self._subject)
        base = find_model_class(settings, self._path).from_pretrained(
            self._path,
            config=settings,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            generation_config=GenerationConfig(),
        )
        merged: PreTrainedModel = PeftModel.from_pretrained(base, str(self._adapter_dir)).merge_and_unload()
        merged.to(self._stored).save_pretrained(folder, max_shard_size=SHARD_BYTES)


def _empty(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.empty_like(tensor, device=META) for name, tensor in state.items()}


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _round(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the dtype of the files, by way of fp32, which the model would be loaded in."""
    return tensor if tensor.dtype == dtype else _widen(tensor).to(dtype)
