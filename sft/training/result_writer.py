"""Writes the result of a training: the adapter or the whole model, and the merged model."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft.adapting.merging import plan_merge
from sft.config import SFTConfig
from sft.files.disk import raising_disk_full
from sft.files.publication import Publishing, publish_folder
from sft.models.companions import save_companions, try_saving
from sft.models.loading import quiet_transformers
from sft.training.model_card import Provenance, name_base, write_card


@dataclass(frozen=True)
class ResultWriter:
    """Writes the models of one training, each with tokenizer, chat template, generation config and model card."""

    config: SFTConfig
    model_path: Path
    tokenizer: PreTrainedTokenizerBase

    def try_writing(self, model: nn.Module, output_dir: Path) -> None:
        """Save the parts of the result that exist before training to a temporary folder, to find errors early.

        Raises:
            InvalidConfig: output_dir can't be written to.
            ModelUnusable: a part of the model can't be saved.
            DiskFull: there is no space for it.
        """
        adapters = [*model.peft_config.values()] if isinstance(model, PeftModel) else []
        try_saving(output_dir, self.config.base_model, _get_base(model), self.model_path, self.tokenizer, adapters)

    def write(self, model: nn.Module, adapter_dir: Path, facts: dict[str, Any], provenance: Provenance) -> None:
        """Publish the trained model. Raises DiskFull.

        Args:
            facts: `rows`, `dtype` and `adaptation` of the training, for the model card.
            provenance: data and results, for the model card.
        """
        is_adapter = isinstance(model, PeftModel)
        if is_adapter:
            for adapter in model.peft_config.values():
                adapter.base_model_name_or_path = name_base(self.config.base_model)  # no path of this machine
        size = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        with (
            raising_disk_full(adapter_dir, "the adapter", size),
            publish_folder(adapter_dir) as folder,
            quiet_transformers(),
        ):
            # Otherwise PEFT asks the Hub whether the vocabulary was extended, which ours never is.
            options = {"save_embedding_layers": False} if is_adapter else {}
            model.save_pretrained(folder, **options)
            self._write_companions(folder, model)
            write_card(folder, "adapter" if is_adapter else "full", self.config, self.model_path, facts, provenance)

    def write_merged(
        self,
        model: nn.Module,
        adapter_dir: Path,
        facts: dict[str, Any],
        provenance: Provenance,
        publishing: Publishing,
    ) -> Path:
        """Merge the adapter in `adapter_dir` into the base model's files and publish the result beside it.

        The weights are merged in fp32, file by file, and are stored in the dtype of the base model's files.

        Args:
            publishing: context entered around the rename.

        Raises:
            MergeFailed: there is too little memory.
            DiskFull: the merged model does not fit.
        """
        target = adapter_dir.with_name("merged")
        with ExitStack() as renaming, quiet_transformers():
            merge = plan_merge(self.model_path, adapter_dir, f"base_model {self.config.base_model}")
            with raising_disk_full(target, "the merged model", merge.size), publish_folder(target) as folder:
                merge.write(folder)
                self._write_companions(folder, model)
                write_card(folder, "merged", self.config, self.model_path, facts, provenance)
                renaming.enter_context(publishing())
        return target

    def _write_companions(self, folder: Path, model: nn.Module) -> None:
        save_companions(folder, self.tokenizer, _get_base(model).generation_config, self.model_path)


def _get_base(model: Any) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model
