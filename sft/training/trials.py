"""Short trials of a model: what it computes for two texts of a few tokens, and how exactly."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft.adapting.reach import draw_text
from sft.adapting.shortened import first_layers
from sft.kernels.loss import sum_nll
from sft.training.random_state import untouched_random_state

LENGTHS = (6, 9)  # tokens of the two trial texts


@contextmanager
def trying(model: PreTrainedModel, *smaller: Callable[[PreTrainedModel], Any]) -> Iterator[None]:
    """For a trial: no gradient, no dropout, and the model shrunk in each of these ways that it still runs with."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), ExitStack() as stack:
            ways = (first_layers, *smaller)
            runs_with_all = _runs(model, *ways)  # as nearly every model does
            for make_small in ways:
                if runs_with_all or _runs(model, make_small):
                    stack.enter_context(make_small(model))
            yield
    finally:
        model.train(was_training)


def _runs(model: PreTrainedModel, *ways: Callable[[PreTrainedModel], Any]) -> bool:
    try:
        with ExitStack() as stack:
            for make_small in ways:
                stack.enter_context(make_small(model))
            compute_logits(model, draw_text(model, sum(LENGTHS)))
    except Exception:
        return False
    return True


@contextmanager
def computing(model: PreTrainedModel, dtype: torch.dtype | None) -> Iterator[None]:
    """On a GPU, compute in this dtype, as the trainer will, if the weights have another one."""
    kind = model.device.type
    with torch.autocast(kind, dtype, enabled=kind != "cpu" and dtype is not None and dtype != model.dtype):
        yield


def collate(texts: list[Tensor], padding_free: bool, device: torch.device) -> dict[str, Any]:
    """The batch that the trainer would make of these texts."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)
    rows = [{"input_ids": ids[0].tolist(), "labels": ids[0].tolist()} for ids in texts]
    return {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in dict(collate(rows)).items()
    }


def compute_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits of a text, in fp32. (1, T, V) Raises ValueError for logits of another shape."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits  # (1, T, V)
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"{ids.shape[1]} tokens get logits of the shape {tuple(logits.shape)}")
    return logits.float()


def compute_in_training(model: PreTrainedModel, ids: Tensor) -> None:
    """Run a forward pass in training mode: some models need more inputs there (which tokens are images, say)."""
    model.train()
    try:
        with untouched_random_state():  # dropout draws
            compute_logits(model, ids)
    finally:
        model.eval()


def sum_plain_nll(model: PreTrainedModel, ids: Tensor) -> float:
    """Sum of the negative log-likelihoods of a text's tokens but the first, from the model's own logits."""
    return sum_nll_of(compute_logits(model, ids), ids)


def sum_nll_of(logits: Tensor, ids: Tensor) -> float:
    """`sum_plain_nll` from the logits (1, T, V) of this text (1, T)."""
    return float(nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))


def differentiate(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """Gradient of the batch's loss with respect to the input embeddings. (B, T, D)"""
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = model.get_input_embeddings().register_forward_hook(keep)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)  # a gradient of each would take as much memory as the weights
    try:
        with torch.enable_grad():
            total = sum_nll(model, batch)[0]
        [gradient] = torch.autograd.grad(total, embedded)
        return gradient.float()
    finally:
        handle.remove()
        for weight in trained:
            weight.requires_grad_(True)


@contextmanager
def louder(model: PreTrainedModel, factor: float) -> Iterator[None]:
    """Multiply the last hidden states, and so the logits, by this factor."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if hasattr(output, "last_hidden_state"):
            output.last_hidden_state = output.last_hidden_state * factor
        return output

    handle = model.base_model.register_forward_hook(hook) if factor != 1 and model.base_model is not model else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def agrees(found: float, wanted: float, tolerance: float) -> bool:
    """Whether a number is the wanted one within this relative error."""
    return abs(found - wanted) <= tolerance * abs(wanted)


def loss_tolerance(model: PreTrainedModel) -> float:
    """Relative error of a loss that another order of sums may cause."""
    return 1e-3 if is_exact(model) else 2e-2


def tolerance_of(model: PreTrainedModel) -> float:
    """Relative error that rounding may cause; a wrong head or mask causes far more."""
    return 1e-4 if is_exact(model) else 3e-2


def is_exact(model: PreTrainedModel) -> bool:
    """Whether the model computes in fp32."""
    return bool(model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type))


def name_of(model: PreTrainedModel) -> str:
    """The model's name in messages: that of its folder."""
    return model.name_or_path.rstrip("/").rpartition("/")[2] or type(model).__name__
