"""Checks and counts quantized weights."""

from typing import Any

import torch

from sft.errors import ModelUnusable


def check_quantization(settings: Any, subject: str) -> None:
    """Check with transformers whether a model that is stored quantized can be loaded here.

    transformers ignores an unknown method and would use the stored numbers as the weights. Raises ModelUnusable for
    an unknown method, and the library's error for what the machine lacks.
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
    """Number of weights in a parameter; bitsandbytes stores two 4-bit weights per byte."""
    if type(parameter).__name__ == "Params4bit":
        storage = getattr(parameter, "quant_storage", torch.uint8)
        return int(parameter.numel() * 2 * storage.itemsize)
    return int(parameter.numel())
