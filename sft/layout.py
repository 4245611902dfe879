"""How the rows of a batch are laid out for a model: the fastest way it gets the right loss in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sft.loss import sum_nll
from sft.packing import DOCUMENT_ATTENTION, register_document_attention

Layout = Literal["documents", "padded", "trl"]


def choose_layout(model: PreTrainedModel) -> Layout:
    """The fastest layout this model gets the right loss in: found by trying, not by its name.

    On a CPU the answer of `documents` and `padded` for two short random documents is compared with the model's own, in
    its first layers alone. In the first case the model is left with its attention run by document.
    """
    # A cap bends large logits only, which a short random text may not have.
    if model.device.type != "cpu" or getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        return "trl"
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    try:
        generator = torch.Generator().manual_seed(0)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        documents = [torch.randint(vocabulary, (1, length), generator=generator) for length in (6, 9)]
        with torch.no_grad(), _first_layers(model):
            wanted = sum(_sum_plain_nll(model, document) for document in documents)
            if not _agrees(sum(sum_nll(model, {"input_ids": ids, "labels": ids})[0] for ids in documents), wanted):
                return "trl"
            if _set_attention(model, DOCUMENT_ATTENTION) and _isolates(model, documents, wanted):
                return "documents"
        _set_attention(model, attention)
        return "padded"
    finally:
        model.train(was_training)


@contextmanager
def _first_layers(model: PreTrainedModel) -> Iterator[None]:
    """With no more layers than it takes to have one of each kind: tiny batches are slow in all of a large model."""
    backbone: Any = model.base_model
    stacks = [(name, child) for name, child in backbone.named_children() if isinstance(child, nn.ModuleList)]
    if len(stacks) != 1:
        yield
        return
    name, layers = stacks[0]
    kinds = [_describe_kind(layer) for layer in layers]
    setattr(backbone, name, layers[: max(map(kinds.index, kinds)) + 1])
    try:
        yield
    finally:
        setattr(backbone, name, layers)


def _describe_kind(layer: nn.Module) -> list[tuple[str, type, Any]]:
    parts = layer.named_modules()
    return [(name, type(part), getattr(part, "sliding_window", None)) for name, part in parts]


def _set_attention(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's attention is now this one; some models know no other than their own."""
    register_document_attention()
    if model.config._attn_implementation != name:
        try:
            model.set_attn_implementation(name)
        except ValueError:
            return False
    return bool(model.config._attn_implementation == name)


def _isolates(model: PreTrainedModel, documents: list[Tensor], wanted: Any) -> bool:
    """Whether documents laid end to end give the loss they give alone, and the first never touches the second."""
    first, second = documents
    bounds = torch.tensor([0, first.shape[1], first.shape[1] + second.shape[1]], dtype=torch.int32)
    features: dict[str, Any] = {
        "position_ids": torch.cat([torch.arange(ids.shape[1]) for ids in documents])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": second.shape[1],
        "max_length_k": second.shape[1],
    }
    losses = []
    for beginning in (first, first.flip(1)):
        ids = torch.cat([beginning, second], dim=1)
        labels = ids.clone()
        labels[:, [0, first.shape[1]]] = -100
        try:
            whole, _ = sum_nll(model, {"input_ids": ids, "labels": labels, **features})
            labels[:, : first.shape[1]] = -100
            last, _ = sum_nll(model, {"input_ids": ids, "labels": labels, **features})
        except TypeError:  # a model that takes no document bounds
            return False
        losses.append((whole, last))
    return _agrees(losses[0][0], wanted) and bool(torch.allclose(losses[0][1], losses[1][1], rtol=1e-6))


def _sum_plain_nll(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


def _agrees(found: Any, wanted: Any) -> bool:
    narrow = 2e-2  # what bf16 rounding may do; a wrong head or mask shows far more
    return abs(float(found) - float(wanted)) <= narrow * abs(float(wanted))
