"""`AdaptedModel`: a base model in memory, with adapters that are swapped without loading it again."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sft.adapting.adapters import check_loadable
from sft.errors import ModelUnusable, is_of_machine
from sft.models.loading import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_ADAPTERS = 4  # in memory; the one used longest ago is removed for another


class AdaptedModel:
    """A base model and its LoRA adapters, by PEFT, unmerged. Not thread-safe.

    `before_layer` is called before each decoder layer computes.
    """

    def __init__(self, model: "PreTrainedModel", before_layer: Callable[[], None] | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        if before_layer is not None:
            for module in model.modules():
                if isinstance(module, GradientCheckpointingLayer):  # what transformers' decoder layers are
                    module.register_forward_pre_hook(lambda *_: before_layer())
        self._adapted: PeftModel | None = None
        self._names: OrderedDict[Path, str] = OrderedDict()
        self._loaded = 0

    @contextmanager
    def using(self, adapter: Path | None) -> Iterator["PreTrainedModel"]:
        """Yield the model with the adapter in this folder, or without any.

        Raises:
            ModelUnusable: the adapter can't be read, or is for another model.
            ModelNotFound: the folder holds no adapter.
        """
        if adapter is not None:
            self._choose(adapter)
        if self._adapted is None or adapter is not None:
            yield self.model
        else:
            with self._adapted.disable_adapter():
                yield self.model

    def _choose(self, folder: Path) -> None:
        if folder not in self._names:
            self._load(folder)
        self._names.move_to_end(folder)
        assert self._adapted is not None  # noqa: S101 - an adapter was loaded
        self._adapted.set_adapter(self._names[folder])
        self._adapted.requires_grad_(False)

    def _load(self, folder: Path) -> None:
        check_loadable(self.model, folder)
        self._loaded += 1
        name = f"adapter{self._loaded}"
        try:
            with quiet_transformers():
                warnings.filterwarnings("error", "Found missing adapter keys")
                if self._adapted is None:
                    self._adapted = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
                else:
                    self._adapted.load_adapter(str(folder), adapter_name=name)
        except Exception as error:
            self._forget(name)
            if is_of_machine(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ModelUnusable(f"the adapter does not fit its base model: {reason}") from error
        self._adapted.eval()
        self._names[folder] = name
        while len(self._names) > MOST_ADAPTERS:
            self._forget(self._names.popitem(last=False)[1])

    def _forget(self, name: str) -> None:
        """Remove an adapter; the last one stays, as PEFT can't be without any."""
        if self._adapted is not None and name in self._adapted.peft_config and len(self._adapted.peft_config) > 1:
            self._adapted.delete_adapter(name)
