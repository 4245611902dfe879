"""How far training has moved a model, relative to its weights: a change far below rounding affects no answer."""

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

SAMPLE = 4096  # numbers kept of each weight, to compare with
VISIBLE = 1e-6  # |change| / |weights|; an ordinary LoRA step moves a layer by 1e-4, and fp32 rounds at 6e-8


def sample_weights(weights: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The first numbers of each weight."""
    return {name: weight.detach().flatten()[:SAMPLE].clone() for name, weight in weights}


def is_visible(model: nn.Module, weights: list[tuple[str, Tensor]], start: dict[str, Tensor]) -> bool:
    """Whether any trained weight has moved by VISIBLE or more, relative to its norm.

    A new adapter, whose B starts as zeros, is measured by s |B A| / |W|; any other weight by |w - w0| / |w0|.
    """
    new = {name.partition(".lora_B.")[0] for name, weight in start.items() if ".lora_B." in name and not weight.any()}
    adapters = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer) and name in new]
    if any(_measure_adapter(layer) >= VISIBLE for _, layer in adapters):
        return True
    own = [(name, weight) for name, weight in weights if name.partition(".lora_")[0] not in new]
    return any(_compare(weight, start.get(name)) >= VISIBLE for name, weight in own)


def _measure_adapter(layer: LoraLayer) -> float:
    """s |B A| / |W| in Frobenius norms; the largest |b| of B where A or B is not a matrix.

    |B A|^2 = trace((B'B) (A A')): two (R, R) products instead of an (O, I) one. B is (O, R), A is (R, I).
    """
    largest = 0.0
    for name, module in layer.lora_B.items():
        a, b = layer.lora_A[name].weight.detach().float(), module.weight.detach().float()
        if a.dim() != 2 or b.dim() != 2:
            return float(b.abs().max())
        square = torch.trace((b.T @ b) @ (a @ a.T)).clamp(min=0)  # rounding can make it negative
        own = getattr(layer.get_base_layer(), "weight", None)
        norm = own.detach().float().norm() if own is not None and own.is_floating_point() else torch.tensor(1.0)
        largest = max(largest, float(layer.scaling[name] * square.sqrt() / norm.clamp(min=1e-30)))
    return largest


def _compare(weight: Tensor, start: Tensor | None) -> float:
    if start is None:
        return 1.0
    change = weight.detach().flatten()[:SAMPLE].float() - start.float()
    return float(change.norm() / start.float().norm().clamp(min=1e-30))
