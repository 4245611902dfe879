"""How far training has moved a model, as a share of its weights: what is far below rounding shows in no answer."""

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

SAMPLE = 4096  # numbers of each weight that are kept to compare with
VISIBLE = 1e-6  # a share; a usual step of LoRA moves a layer by 1e-4 of its weights, fp32 rounds at 6e-8


def sample_weights(weights: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The first numbers of each weight."""
    return {name: weight.detach().flatten()[:SAMPLE].clone() for name, weight in weights}


def is_visible(model: nn.Module, weights: list[tuple[str, Tensor]], start: dict[str, Tensor]) -> bool:
    """Whether anything trained has moved by a share of VISIBLE or more.

    A new adapter, whose B began as zeros, is measured by what it adds to its layer; all else by its own numbers.
    """
    new = {name.partition(".lora_B.")[0] for name, weight in start.items() if ".lora_B." in name and not weight.any()}
    adapters = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer) and name in new]
    if any(_measure_adapter(layer) >= VISIBLE for _, layer in adapters):
        return True
    own = [(name, weight) for name, weight in weights if name.partition(".lora_")[0] not in new]
    return any(_compare(weight, start.get(name)) >= VISIBLE for name, weight in own)


def _measure_adapter(layer: LoraLayer) -> float:
    """The norm of B A, over that of the layer's weights; B alone where those are in another form."""
    largest = 0.0
    for name, module in layer.lora_B.items():
        a, b = layer.lora_A[name].weight.detach().float(), module.weight.detach().float()
        if a.dim() != 2 or b.dim() != 2:
            return float(b.abs().max())
        square = torch.trace((b.T @ b) @ (a @ a.T)).clamp(min=0)
        own = getattr(layer.get_base_layer(), "weight", None)
        norm = own.detach().float().norm() if own is not None and own.is_floating_point() else torch.tensor(1.0)
        largest = max(largest, float(layer.scaling[name] * square.sqrt() / norm.clamp(min=1e-30)))
    return largest


def _compare(weight: Tensor, start: Tensor | None) -> float:
    if start is None:
        return 1.0
    change = weight.detach().flatten()[:SAMPLE].float() - start.float()
    return float(change.norm() / start.float().norm().clamp(min=1e-30))
