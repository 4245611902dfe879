"""Chooses transformers' auto class for a base model, and builds the model without weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import ModelNotSupported

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_model_class(settings: Any, path: Path) -> Any:
    """The auto class for these settings; of several, the one that makes the class the model was saved as.

    Models that also read images are included; their language part is trained on rows of text.

    Raises:
        ModelNotSupported: no auto class knows the model's type.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    known = [
        candidate
        for candidate in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)
        if type(settings) in candidate._model_mapping
    ]
    if not known:
        raise ModelNotSupported(
            f"base_model {path.name} is a {settings.model_type} model, which transformers does not know as a causal "
            "language model; choose another model"
        )
    saved_as = set(settings.architectures or ())
    for candidate in known:
        made = candidate._model_mapping[type(settings)]
        names = {kind.__name__ for kind in (made if isinstance(made, list | tuple) else [made])}
        if names & saved_as:
            return candidate
    return known[0]


def build_empty(path: Path, subject: str | None = None) -> "PreTrainedModel":
    """The model without its weights, on the meta device. Raises ModelUnusable and ModelNotSupported."""
    import torch

    from sft.models.model_settings import explaining, read_settings
    from sft.models.quantized import check_quantization

    subject = subject or f"base_model {path.name}"
    settings = read_settings(path, subject)
    with explaining(settings.to_dict(), subject, path):
        check_quantization(settings, subject)
        with torch.device("meta"):
            model: PreTrainedModel = find_model_class(settings, path).from_config(settings, trust_remote_code=False)
    return model
