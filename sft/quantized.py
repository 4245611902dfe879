"""Weights that are stored in fewer bits than they have numbers."""

import torch


def count_weights(parameter: torch.Tensor) -> int:
    """How many weights a parameter holds; bitsandbytes stores 4-bit ones two a byte."""
    if type(parameter).__name__ == "Params4bit":
        storage = getattr(parameter, "quant_storage", torch.uint8)
        return int(parameter.numel() * 2 * storage.itemsize)
    return int(parameter.numel())
