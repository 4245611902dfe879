"""Chooses how the rows of a batch are laid out: the fastest layout that gives this model the right loss."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from sft.adapting.reach import draw_text
from sft.adapting.shortened import small_head, small_selections, small_windows
from sft.errors import InvalidConfig, ModelNotSupported, ModelUnusable, is_of_machine
from sft.kernels.loss import sum_fused_nll, sum_logits_nll, sum_nll
from sft.kernels.packing import DOCUMENT_ATTENTION, register_document_attention
from sft.kernels.varlen_attention import VARLEN_ATTENTION, NotVarlen, find_obstacle, register_varlen_attention
from sft.training.divergence import check_base
from sft.training.random_state import untouched_random_state
from sft.training.trials import (
    LENGTHS,
    agrees,
    collate,
    compute_in_training,
    compute_logits,
    computing,
    differentiate,
    is_exact,
    loss_tolerance,
    louder,
    name_of,
    sum_nll_of,
    sum_plain_nll,
    tolerance_of,
    trying,
)

Layout = Literal["documents", "padded", "trl", "logits"]
LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "documents": sum_nll,
    "padded": sum_nll,
    "trl": sum_fused_nll,
    "logits": sum_logits_nll,
}
LAYOUTS_WITH_PADDING: tuple[Layout, ...] = ("padded", "trl", "logits")
WITH_PADDING = ("sdpa", "eager")  # attention implementations that do not know the bounds of documents
LOUD = 60.0  # a logit that softcapping (Gemma: 30) changes


def choose_layout(model: PreTrainedModel, attention: str = "auto", dtype: torch.dtype | None = None) -> Layout:
    """Choose the fastest layout that gives this model the right loss, by a trial and not by its name.

    Each layout's loss of two short random texts, through the model's first layers only, is compared with the
    cross-entropy of the model's own logits. A layout that fails is not chosen. With `documents` the model is left
    with an attention implementation that keeps documents apart.

    Args:
        attention: `attn_implementation` of the configuration.
        dtype: of the computation, where it is not the model's own (full fine-tuning under autocast).

    Raises:
        InvalidConfig: this attention implementation does not suit the model.
        ModelNotSupported: the model is not causal, or no layout gives the right loss.
        ModelUnusable: its weights hold NaN or infinite numbers.
    """
    check_causality(model)
    own = model.config._attn_implementation
    with trying(model, small_head, small_windows, small_selections), computing(model, dtype):
        texts = [draw_text(model, length, seed) for seed, length in enumerate(LENGTHS)]
        for name in _list_attentions(model, attention):
            refusal = _try_documents(model, name, texts)
            if refusal is None:
                return "documents"
            set_attention(model, own)
            model.padding_reason = refusal
        check_wish(attention, name_of(model), getattr(model, "padding_reason", None))
        if attention in WITH_PADDING and not set_attention(model, attention):
            raise InvalidConfig(
                f"attn_implementation {attention} is not supported by base_model {name_of(model)}; set it to auto"
            )
        batch = collate(texts, padding_free=False, device=model.device)
        for layout in LAYOUTS_WITH_PADDING:
            if gives_right_loss(model, layout, batch, texts):
                return layout
    check_base(model, "it gives a row a different loss in a batch than alone")  # some kernels let NaN pass
    raise ModelNotSupported(
        f"base_model {name_of(model)} gives a row a different loss in a batch than alone, so it can't be trained in "
        "batches"
    )


def check_wish(attention: str, name: str, refusal: str | None) -> None:
    """Raise InvalidConfig if this `attn_implementation` lays rows end to end and the model called `name` can't have it.

    Args:
        refusal: why it can't.
    """
    if attention not in ("auto", *WITH_PADDING):
        raise InvalidConfig(
            f"attn_implementation {attention} does not suit base_model {name}: {refusal}; set it to auto"
        )


def explain_padding(model: PreTrainedModel, layout: Layout) -> list[str]:
    """A warning for a GPU whose rows are padded, with the reason; empty otherwise."""
    reason = getattr(model, "padding_reason", None)
    if layout == "documents" or model.device.type == "cpu" or reason is None:
        return []
    return [
        f"rows are padded to the longest of their batch and grouped by length, which trains slower than rows laid end "
        f"to end: {reason}"
    ]


def _list_attentions(model: PreTrainedModel, attention: str) -> list[str]:
    """The attention implementations that lay rows end to end, which are tried in this order."""
    if attention != "auto":
        return [] if attention in WITH_PADDING else [attention]
    return [choose_document_attention(model.device.type)]


def choose_document_attention(kind: str) -> str:
    """The attention implementation that keeps documents apart on this kind of device."""
    return DOCUMENT_ATTENTION if kind == "cpu" else VARLEN_ATTENTION


def _try_documents(model: PreTrainedModel, name: str, texts: list[Tensor]) -> str | None:
    """Lay rows end to end with this attention: None if the loss is right, else what was found."""
    obstacle = find_obstacle(model.device) if name == VARLEN_ATTENTION else None
    if obstacle is not None:
        return obstacle
    padded = collate(texts, padding_free=False, device=model.device)
    if not gives_right_loss(model, "padded", padded, texts):
        return "its head is more than one matrix, or a row changes others"
    is_new = name != DOCUMENT_ATTENTION  # kernels whose backward pass is tried too
    wanted = differentiate(model, padded) if is_new else None
    if not set_attention(model, name):
        return f"it does not support the attention implementation {name}"
    batch = collate(texts, padding_free=True, device=model.device)
    if not (gives_right_loss(model, "documents", batch, texts) and isolates(model, "documents")):
        return _find_refusal(model, batch) or "rows laid end to end would have another loss"
    if wanted is not None:
        is_real = padded["attention_mask"].bool()
        found, wanted = differentiate(model, batch)[0], wanted[is_real]  # (T, D) each
        # Measured between right kernels: 3e-7 in fp32, 0.02 in bf16.
        if not bool((found - wanted).norm() <= (1e-4 if is_exact(model) else 0.05) * wanted.norm()):
            return "its gradient is another one for rows laid end to end"
    return _find_refusal(model, batch)


def _find_refusal(model: PreTrainedModel, batch: dict[str, Any]) -> str | None:
    """Run these documents in training mode: None, or the first line of the error."""
    model.train()
    try:
        with untouched_random_state():
            sum_nll(model, batch)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return lines[0] if isinstance(error, NotVarlen) else f"{type(error).__name__}: {lines[0]}"
    finally:
        model.eval()
    return None


def check_causality(model: PreTrainedModel) -> None:
    """Check that logits do not depend on later tokens. Raises ModelNotSupported, ModelUnusable."""
    try:
        with trying(model, small_head):
            ids, at = draw_text(model, sum(LENGTHS)), LENGTHS[0]  # (1, T); the first `at` tokens stay
            changed = torch.cat([ids[:, :at], draw_text(model, LENGTHS[1], seed=2)], dim=1)  # (1, T)
            first, second = (compute_logits(model, text) for text in (ids, changed))  # (1, T, V) each
            compute_in_training(model, ids)
    except Exception as error:
        if is_of_machine(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelNotSupported(
            f"base_model {name_of(model)} can't compute logits for a row of text alone: {lines[0]}"
        ) from error
    if not bool(first.isfinite().all() and second.isfinite().all()):
        check_base(model, "its logits of a short text are not numbers")
        raise ModelUnusable(
            f"base_model {name_of(model)} computes NaN or infinite logits for a short text in {model.dtype}: look at "
            "the numbers in its config.json (rope_parameters, norm eps), or set mixed_precision to none where it is "
            "another"
        )
    # max |dZ| before and from position `at`: the first is rounding error if logits depend on earlier tokens only.
    moved, later = ((first - second)[:, part].abs().max() for part in (slice(at), slice(at, None)))
    if not bool(moved <= tolerance_of(model) * later):
        check_base(model, "a later token changes its logits of an earlier one")
        raise ModelNotSupported(
            f"base_model {name_of(model)} is not a causal language model: a later token changes the logits of an "
            "earlier one, so training would see the answers; choose a causal language model"
        )


def check_packing(model: PreTrainedModel, layout: Layout) -> None:
    """Check that rows packed into one sequence do not attend to each other. Raises InvalidConfig."""
    if layout == "documents":  # found to be so when it was chosen
        return
    with trying(model, small_head, small_windows, small_selections):
        if not isolates(model, layout):
            raise InvalidConfig(
                f"with packing, base_model {name_of(model)} would attend from a row to the rows before it in the "
                "sequence; set packing to false"
            )


def isolates(model: PreTrainedModel, layout: Layout) -> bool:
    """Whether a text's loss stays the same when the text before it in the sequence changes.

    Its first prediction and the others are compared apart, as a leak may affect only those near the boundary.
    """
    first, second = (draw_text(model, length, seed) for seed, length in enumerate(LENGTHS))
    start = first.shape[1] + 1  # first predicted token of the second text
    parts = [slice(start, start + 1), slice(start + 1, None)]
    losses = []
    try:
        for text in (first, first.flip(1)):
            batch = collate([text, second], padding_free=True, device=model.device)  # (1, sum(LENGTHS))
            for part in parts:
                labels = torch.full_like(batch["labels"], -100)
                labels[:, part] = batch["labels"][:, part]
                losses.append(_sum_loss(model, layout, batch | {"labels": labels}))
    except Exception:  # the model does not accept the documents' bounds
        return False
    logits = compute_logits(model, second)  # (1, T, V)
    near = sum_nll_of(logits[:, :2], second[:, :2])  # of the second text's first prediction
    wanted = torch.tensor([near, sum_nll_of(logits, second) - near])  # (2,)
    kept, changed = torch.tensor(losses).chunk(2)  # (texts * parts,) -> (parts,) each
    tolerance = tolerance_of(model)
    return bool(torch.allclose(kept, changed, rtol=tolerance)) and bool(
        torch.allclose(kept, wanted, rtol=10 * tolerance)
    )


def gives_right_loss(model: PreTrainedModel, layout: Layout, batch: dict[str, Any], texts: list[Tensor]) -> bool:
    """Whether the layout's loss equals that of the model's own logits, also where softcapping bends large ones."""
    try:
        logits = [compute_logits(model, ids) for ids in texts]
        wanted = sum(map(sum_nll_of, logits, texts))
        if not agrees(_sum_loss(model, layout, batch), wanted, loss_tolerance(model)):
            return False
        factor = LOUD / max(float(part.abs().max()) for part in logits)
        if factor > 1:
            with louder(model, factor):
                wanted = sum(sum_plain_nll(model, ids) for ids in texts)
                return agrees(_sum_loss(model, layout, batch), wanted, loss_tolerance(model))
    except Exception as error:  # after any other error the next layout is tried
        if is_of_machine(error):
            raise
        return False
    return True


def _sum_loss(model: PreTrainedModel, layout: Layout, batch: dict[str, Any]) -> float:
    with ExitStack() as stack:
        if layout == "trl":
            add_fused_lm_head(model, outputs=("log_probs",))
            stack.callback(delattr, model, "forward")
        return float(LOSSES[layout](model, batch)[0])


def set_attention(model: PreTrainedModel, name: str) -> bool:
    """Set the model's attention implementation; False if the model supports only its own."""
    register_document_attention()
    register_varlen_attention()
    if model.config._attn_implementation != name:
        try:
            model.set_attn_implementation(name)
        except Exception:
            return False
    return bool(model.config._attn_implementation == name)
