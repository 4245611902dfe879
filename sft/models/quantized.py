"""Weights that are stored in fewer bits than they have numbers."""

from typing import Any

import torch

from sft.errors import ModelUnusable


def check_quantization(settings: Any, subject: str) -> None:
    """Whether a model that is stored quantized can be loaded here, before it is: transformers' own check.

    It passes over a method that it does not know, and takes the stored numbers for the weights. Raises ModelUnusable
    for such a one; for what the machine lacks, whatever the library raises.
    """
    from transformers.quantizers import AutoHfQuantizer

    stored = getattr(settings, "quantization_config", None) or getattr(
        settings.get_text_config(decoder=True), "quantization_config", None
    )
    if not stored:
        return
    method = (stored if isinstance(stored, dict) else stored.to_dict()).get("quant_method")
    if isinstance(stored, dict) and method and not AutoHfQuantizer.supports_quant_method(stored):
        raise ModelUnusable(
            f"{subject} can't be read: the quant_method {method!r:.60} in its quantization_config is not known; take "
            "the model in bf16"
        )
    AutoHfQuantizer.from_config(stored, pre_quantized=True).validate_environment(device_map=None, weights_only=True)


def count_weights(parameter: torch.Tensor) -> int:
    """How many weights a parameter holds; bitsandbytes stores 4-bit ones two a byte."""
    if type(parameter).__name__ == "Params4bit":
        storage = getattr(parameter, "quant_storage", torch.uint8)
        return int(parameter.numel() * 2 * storage.itemsize)
    return int(parameter.numel())
