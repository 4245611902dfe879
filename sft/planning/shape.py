"""Counts a model's weights for a plan: all, per layer, and trained."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sft.config import SFTConfig
from sft.data.cache_key import TOKENIZER_FILES
from sft.errors import ModelNotSupported

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sft.adapting.adaptation import Adaptation


class ModelShape(NamedTuple):
    """Sizes of a base model and of what is trained."""

    parameters: int  # of the base model; tied weights count once
    trainable: int
    matrix_parameters: int  # weights of the layers' matrices: without embeddings and head
    layers: int
    hidden: int
    vocabulary: int
    context: int | None  # context length in tokens
    stored_bytes: int  # size of its weight files
    adaptation: "Adaptation"

    @property
    def share(self) -> float:
        """Trained weights over all weights of the model with its adapter."""
        added = self.trainable if self.adaptation.modules else 0
        return self.trainable / (self.parameters + added)


def measure_shape(model: "PreTrainedModel", config: SFTConfig, path: Path) -> ModelShape:
    """Count weights. `model` may be empty (`build_empty`); `path` is its folder.

    Raises:
        InvalidConfig: the model lacks the target modules.
        ModelNotSupported: no layer of the model can be adapted.
    """
    from sft.adapting.adapters import plan_adapter
    from sft.models.experts import find_expert_parameters
    from sft.models.layers import count_layers, find_layers

    try:
        embeddings = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError) as error:
        raise ModelNotSupported(f"base_model {config.base_model} has no table of tokens that it reads") from error
    adaptation = plan_adapter(model, config)
    text = model.config.get_text_config()
    layers = find_layers(model).values()
    matrices = [layer.weight for layer in layers] + list(find_expert_parameters(model).values())
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=adaptation.trainable,
        matrix_parameters=sum(matrix.numel() for matrix in matrices),
        layers=count_layers(model),
        hidden=int(embeddings.shape[1]),
        vocabulary=int(embeddings.shape[0]),
        context=getattr(text, "max_position_embeddings", None),
        stored_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        adaptation=adaptation,
    )


def measure_weight(shape: ModelShape) -> int:
    """Bytes per weight in the base model's files."""
    return max(round(shape.stored_bytes / shape.parameters), 1)


def measure_companions(path: Path) -> int:
    """Total bytes of the tokenizer's files in a model's folder."""
    files = {file for pattern in TOKENIZER_FILES for file in path.glob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files)
