"""How the rows of a batch are laid out for a model: the fastest way it gets the right loss in."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from sft.adapting.reach import draw_text
from sft.adapting.shortened import first_layers, small_selections, small_windows
from sft.errors import InvalidConfig, ModelNotSupported, ModelUnusable
from sft.kernels.loss import sum_fused_nll, sum_logits_nll, sum_nll
from sft.kernels.packing import DOCUMENT_ATTENTION, register_document_attention
from sft.training.divergence import check_base
from sft.training.random_state import untouched_random_state

Layout = Literal["documents", "padded", "trl", "logits"]
LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "documents": sum_nll,
    "padded": sum_nll,
    "trl": sum_fused_nll,
    "logits": sum_logits_nll,
}
LENGTHS = (6, 9)  # of the texts of a trial, tokens
LOUD = 60.0  # a logit that a cap would bend


def choose_layout(model: PreTrainedModel) -> Layout:
    """The fastest layout this model gets the right loss in: found by trying, not by its name.

    What each layout gives for two short random texts is compared with the model's own logits, in its first layers
    alone. A layout that fails in whatever way is not taken. With `documents` the model is left with its attention run
    by document.

    Raises:
        ModelNotSupported: the model gives no logits that a later token leaves alone.
    """
    check_causality(model)
    attention = model.config._attn_implementation
    on_cpu = model.device.type == "cpu"
    with _trying(model, small_windows, small_selections):
        texts = [draw_text(model, length, seed) for seed, length in enumerate(LENGTHS)]
        batch = _collate(texts, padding_free=False, device=model.device)
        if on_cpu and _gives_right_loss(model, "padded", batch, texts):
            whole = _collate(texts, padding_free=True, device=model.device)
            if (
                _set_attention(model, DOCUMENT_ATTENTION)
                and _gives_right_loss(model, "documents", whole, texts)
                and isolates(model, "documents")
            ):
                return "documents"
            _set_attention(model, attention)
            return "padded"
        for layout in ("trl", "logits"):
            if _gives_right_loss(model, layout, batch, texts):
                return layout
    raise ModelNotSupported(
        f"base_model {_name(model)} gives a row another loss beside other rows than alone, so it can't be trained in "
        "batches"
    )


def check_causality(model: PreTrainedModel) -> None:
    """A causal model's logits do not depend on what comes later. Raises ModelNotSupported, ModelUnusable."""
    try:
        with _trying(model):
            ids, at = draw_text(model, sum(LENGTHS)), LENGTHS[0]
            changed = torch.cat([ids[:, :at], draw_text(model, LENGTHS[1], seed=2)], dim=1)
            first, second = (_compute_logits(model, text) for text in (ids, changed))
            _compute_in_training(model, ids)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelNotSupported(
            f"base_model {_name(model)} can't compute logits for a row of text alone: {lines[0]}"
        ) from error
    if not bool(first.isfinite().all() and second.isfinite().all()):
        check_base(model, "its logits of a short text are not numbers")
        raise ModelUnusable(
            f"base_model {_name(model)} computes NaN or infinite logits for a short text in {model.dtype}: look at the "
            "numbers in its config.json (rope_parameters, norm eps), or set mixed_precision to none where it is another"
        )
    moved, later = ((first - second)[:, part].abs().max() for part in (slice(at), slice(at, None)))
    if not bool(moved <= _tolerance(model) * later):
        raise ModelNotSupported(
            f"base_model {_name(model)} is not a causal language model: a later token changes what it says of an "
            "earlier one, so it would learn with sight of the answer; take a model that writes from left to right"
        )


def check_packing(model: PreTrainedModel, layout: Layout) -> None:
    """Rows that are laid into one sequence must not see one another. Raises InvalidConfig."""
    with _trying(model, small_windows, small_selections):
        if not isolates(model, layout):
            raise InvalidConfig(
                f"packing would let rows of base_model {_name(model)} see those before them in a sequence; set packing "
                "to false"
            )


def isolates(model: PreTrainedModel, layout: Layout) -> bool:
    """Whether a text laid behind another one keeps its loss when that one is changed, near it and further off."""
    first, second = (draw_text(model, length, seed) for seed, length in enumerate(LENGTHS))
    start = first.shape[1] + 1  # of what is predicted of the second text
    parts = [slice(start, start + 1), slice(start + 1, None)]
    losses = []
    try:
        for text in (first, first.flip(1)):
            batch = _collate([text, second], padding_free=True, device=model.device)
            for part in parts:
                labels = torch.full_like(batch["labels"], -100)
                labels[:, part] = batch["labels"][:, part]
                losses.append(_sum_loss(model, layout, batch | {"labels": labels}))
    except Exception:  # a model that can't be given the bounds of texts
        return False
    near = _sum_plain_nll(model, second[:, :2])
    wanted = torch.tensor([near, _sum_plain_nll(model, second) - near])
    kept, changed = torch.tensor(losses).chunk(2)
    tolerance = _tolerance(model)
    return bool(torch.allclose(kept, changed, rtol=tolerance)) and bool(
        torch.allclose(kept, wanted, rtol=10 * tolerance)
    )


@contextmanager
def _trying(model: PreTrainedModel, *smaller: Callable[[PreTrainedModel], Any]) -> Iterator[None]:
    """For a trial: no gradient, no dropout, and the model made smaller in these ways where it still runs so."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), ExitStack() as stack:
            for make_small in (first_layers, *smaller):
                if _runs(model, make_small):
                    stack.enter_context(make_small(model))
            yield
    finally:
        model.train(was_training)


def _runs(model: PreTrainedModel, make_small: Callable[[PreTrainedModel], Any]) -> bool:
    try:
        with make_small(model):
            _compute_logits(model, draw_text(model, sum(LENGTHS)))
    except Exception:
        return False
    return True


def _gives_right_loss(model: PreTrainedModel, layout: Layout, batch: dict[str, Any], texts: list[Tensor]) -> bool:
    """Whether the layout's loss is that of the model's own logits, large ones too, which some models bend."""
    try:
        logits = [_compute_logits(model, ids) for ids in texts]
        factor = LOUD / max(float(part.abs().max()) for part in logits)
        for loudness in (1.0, max(factor, 1.0)):
            with _louder(model, loudness):
                wanted = sum(_sum_plain_nll(model, ids) for ids in texts)
                if not _agrees(_sum_loss(model, layout, batch), wanted, _loss_tolerance(model)):
                    return False
    except Exception:  # of whatever kind: another layout is tried
        return False
    return True


def _sum_loss(model: PreTrainedModel, layout: Layout, batch: dict[str, Any]) -> float:
    with ExitStack() as stack:
        if layout == "trl":
            add_fused_lm_head(model, outputs=("log_probs",))
            stack.callback(delattr, model, "forward")
        return float(LOSSES[layout](model, batch)[0])


@contextmanager
def _louder(model: PreTrainedModel, factor: float) -> Iterator[None]:
    """With what comes out of the layers, and so the logits, larger by this factor."""

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


def _collate(texts: list[Tensor], padding_free: bool, device: torch.device) -> dict[str, Any]:
    """The batch that the trainer would make of these texts."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)
    rows = [{"input_ids": ids[0].tolist(), "labels": ids[0].tolist()} for ids in texts]
    return {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in dict(collate(rows)).items()
    }


def _set_attention(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's attention is now this one; some models know no other than their own."""
    register_document_attention()
    if model.config._attn_implementation != name:
        try:
            model.set_attn_implementation(name)
        except Exception:
            return False
    return bool(model.config._attn_implementation == name)


def _compute_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    if logits.shape[:-1] != ids.shape:
        raise ValueError(f"{ids.shape[1]} tokens get logits of the shape {tuple(logits.shape)}")
    return logits.float()


def _compute_in_training(model: PreTrainedModel, ids: Tensor) -> None:
    """Some models ask for more while they are trained: which of the tokens are of images, say."""
    model.train()
    try:
        with untouched_random_state():  # dropout draws
            _compute_logits(model, ids)
    finally:
        model.eval()


def _sum_plain_nll(model: PreTrainedModel, ids: Tensor) -> float:
    logits = _compute_logits(model, ids)
    return float(nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))


def _agrees(found: float, wanted: float, tolerance: float) -> bool:
    return abs(found - wanted) <= tolerance * abs(wanted)


def _loss_tolerance(model: PreTrainedModel) -> float:
    return 1e-3 if model.dtype == torch.float32 else 2e-2


def _tolerance(model: PreTrainedModel) -> float:
    """What rounding may do to a value; a wrong head or mask shows far more."""
    return 1e-4 if model.dtype == torch.float32 else 3e-2


def _name(model: PreTrainedModel) -> str:
    return model.name_or_path.rstrip("/").rpartition("/")[2] or type(model).__name__
