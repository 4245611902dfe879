"""The model as far as a plan needs it: how many weights, of which layers, trained how."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft.config import SFTConfig
from sft.errors import ModelNotFound
from sft.tokenization import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def build_empty(path: Path) -> "PreTrainedModel":
    """The model without its weights, on the meta device. Raises ModelNotFound."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        settings = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:  # ImportError: it asks for kernels from the Hub
        raise ModelNotFound(f"{path} has no model that can be read: {error}") from error
    return model


def measure_shape(model: "PreTrainedModel", config: SFTConfig, path: Path) -> ModelShape:
    """Count weights. `model` may be empty (`build_empty`); `path` is its folder.

    Raises:
        InvalidConfig: target modules the model does not have.
    """
    from sft.arguments import add_adapter

    add_adapter(model, config.model_copy(update={"adapter_path": None}))
    text = model.config.get_text_config()
    matrices = dict(_find_matrices(model))
    targets = [shape for name, shape in matrices.items() if _is_target(name, config.lora_target_modules)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(config.lora_r * (rows + columns) + rows * config.use_dora for rows, columns in targets)
    return ModelShape(
        parameters=parameters,
        trainable=trainable if config.use_lora else parameters,
        matrix_parameters=sum(rows * columns for rows, columns in matrices.values()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        context=getattr(text, "max_position_embeddings", None),
        stored_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
    )


def measure_weight(shape: ModelShape) -> int:
    """Bytes of one weight as the base model's files hold it."""
    return max(round(shape.stored_bytes / shape.parameters), 1)


def measure_companions(path: Path) -> int:
    """Bytes of the tokenizer's files in a model's folder."""
    files = {file for pattern in TOKENIZER_FILES for file in path.glob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files)


def _find_matrices(model: "PreTrainedModel") -> Any:
    """Name and (out, in) of every linear layer but the head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            yield name, (module.weight.shape[1], module.weight.shape[0])


def _is_target(name: str, targets: tuple[str, ...] | None) -> bool:
    return targets is None or any(name == target or name.endswith(f".{target}") for target in targets)
