"""The model as far as a plan needs it: how many weights, of which layers, trained how."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sft.config import SFTConfig
from sft.data.tokenization import TOKENIZER_FILES
from sft.errors import ModelNotSupported

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sft.adapting.adaptation import Adaptation


class ModelShape(NamedTuple):
    """A base model and what is trained of it."""

    parameters: int  # of the base model, tied ones once
    trainable: int
    matrix_parameters: int  # those a token is multiplied with in the layers: neither embeddings nor head
    layers: int
    hidden: int
    vocabulary: int
    context: int | None  # the longest text it was made for
    stored_bytes: int  # of its weight files
    adaptation: "Adaptation"

    @property
    def share(self) -> float:
        """Of the weights of the model with its adapter that are trained."""
        added = self.trainable if self.adaptation.modules else 0
        return self.trainable / (self.parameters + added)


def measure_shape(model: "PreTrainedModel", config: SFTConfig, path: Path) -> ModelShape:
    """Count weights. `model` may be empty (`build_empty`); `path` is its folder.

    Raises:
        InvalidConfig: target modules the model does not have.
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
    """Bytes of one weight as the base model's files hold it."""
    return max(round(shape.stored_bytes / shape.parameters), 1)


def measure_companions(path: Path) -> int:
    """Bytes of the tokenizer's files in a model's folder."""
    files = {file for pattern in TOKENIZER_FILES for file in path.glob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files)
