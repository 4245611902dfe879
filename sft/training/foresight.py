"""Foresees the layout that a job will choose (`sft.training.layout`), without weights and without the job's device.

The choice is a trial of the loaded model on its device. Here the same questions are put to the model on the meta
device: what its layers ask of attention is recorded, and its head is tried on hidden states of its own.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from sft.adapting.reach import draw_text
from sft.adapting.shortened import first_layers
from sft.kernels.varlen_attention import (
    VARLEN_ATTENTION,
    NotVarlen,
    check_direction,
    check_dropout,
    check_kernel,
    check_options,
)
from sft.training.layout import (
    LAYOUTS_WITH_PADDING,
    WITH_PADDING,
    Layout,
    check_wish,
    choose_document_attention,
    gives_right_loss,
    set_attention,
)
from sft.training.random_state import untouched_random_state
from sft.training.trials import LENGTHS, collate, name_of

RECORDER = "recorder"  # the attention implementation that records
VOCABULARY = 64  # of the head that is tried


class Place(NamedTuple):
    """What a layout depends on beside the model.

    Attributes:
        kind: `cpu` or `cuda`.
        dtype: of the computation.
        capability: compute capability of the CUDA device.
    """

    kind: str
    dtype: torch.dtype
    capability: tuple[int, int] | None = None


def foresee_layout(empty: PreTrainedModel, attention: str, place: Place) -> Layout:
    """The layout that `choose_layout` will choose for this model there.

    Args:
        empty: the model on the meta device; it is left unchanged.
        attention: `attn_implementation` of the configuration.

    Raises:
        InvalidConfig: this attention implementation does not suit the model or the device.
    """
    head = _try_head(empty)
    if attention in WITH_PADDING:
        return head
    refusal = "its head is more than one matrix" if head != "padded" else find_refusal(empty, attention, place)
    if refusal is None:
        return "documents"
    check_wish(attention, name_of(empty), refusal)
    return head


def find_refusal(empty: PreTrainedModel, attention: str, place: Place) -> str | None:
    """Why rows of this model can't be laid end to end there, as the end of a sentence; None if they can.

    Args:
        attention: `auto`, `varlen`, or the name of a package, whose limits only the job's trial shows.
    """
    if getattr(empty, "_is_stateful", False):  # transformers' mark of layers that carry a state along the row
        return "its layers carry a state from one row to the next"
    asked: list[str] = []
    refusals: list[str] = []

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        asked.append(type(module).__name__)
        try:
            check_options(options)
            check_direction(module, is_causal)
            if place.kind != "cpu" and attention in ("auto", VARLEN_ATTENTION):
                check_dropout(module, dropout)
                check_kernel(query, value, place.dtype, place.capability or (0, 0))
        except NotVarlen as error:
            refusals.append(str(error))
            raise
        # (B, H, T, Dv) -> (B, T, H, Dv)
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    own = empty.config._attn_implementation
    AttentionInterface.register(RECORDER, attend)
    if not set_attention(empty, RECORDER):
        return f"it does not support the attention implementation {choose_document_attention(place.kind)}"
    was_training = empty.training
    empty.train()
    try:
        with torch.no_grad(), untouched_random_state(), first_layers(empty):
            empty(input_ids=draw_text(empty, sum(LENGTHS)), use_cache=False)
    except Exception:  # a refusal, or an operation that needs the data of a tensor after attention was asked for
        if not asked:
            return None
    finally:
        empty.train(was_training)
        set_attention(empty, own)
    if not asked:
        return "its layers have no attention that keeps rows apart"
    return refusals[0] if refusals else None


def _try_head(empty: PreTrainedModel) -> Layout:
    """The layout with padding, by the loss of the model's own head; the usual one if its head can't be tried alone."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _stand_on(empty)
            texts = [torch.randint(VOCABULARY, (1, length)) for length in LENGTHS]  # (1, L) each
            batch = collate(texts, padding_free=False, device=torch.device("cpu"))
            for layout in LAYOUTS_WITH_PADDING:
                if gives_right_loss(model, layout, batch, texts):
                    return layout
    except Exception:  # a model that asks more of its layers than their last states
        return "padded"
    return "padded"


def _stand_on(empty: PreTrainedModel) -> PreTrainedModel:
    """The model with its own forward pass, over a table of hidden states in place of its layers, and a small head."""
    if empty.base_model is empty:
        raise ValueError("its layers are not a part of their own")
    model = copy.copy(empty)
    model._modules = dict(empty._modules)
    head = empty.get_output_embeddings()
    width = head.weight.shape[1]
    setattr(model, model.base_model_prefix, _Layers(width))
    model.set_output_embeddings(nn.Linear(width, VOCABULARY, bias=head.bias is not None))
    return model.eval()


class _Output(BaseModelOutputWithPast):  # type: ignore[misc]  # transformers' outputs are untyped here
    """Last hidden states; whatever else a model asks of its layers is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Layers(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Hidden states that depend on the token alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, width)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table; without one transformers takes the model for one without a head."""
        return self.embed_tokens

    def forward(self, input_ids: Tensor, **options: Any) -> _Output:
        """(B, T) -> (B, T, D)"""
        return _Output(last_hidden_state=self.embed_tokens(input_ids))
