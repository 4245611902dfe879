"""What a model must be to be trained, and how its rows are laid out: found by changing tokens and looking."""

from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

from sft.adapting import shortened
from sft.adapting.reach import draw_text, find_reached
from sft.adapting.shortened import small_head, small_windows
from sft.errors import InvalidConfig, ModelNotSupported
from sft.kernels.packing import DOCUMENT_ATTENTION
from sft.kernels.varlen_attention import VARLEN_ATTENTION, attend_varlen, find_obstacle
from sft.models.layers import find_layers
from sft.training.layout import _list_attentions, check_packing, choose_layout, explain_padding
from tests.varlen_reference import CALLS, register_varlen_reference

IDS = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
MAMBA = {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}


def build(kind: str, **options: Any) -> t.PreTrainedModel:
    torch.manual_seed(0)
    wide = {**IDS, **SIZES, **options}
    match kind:
        case "bert":
            return t.BertLMHeadModel(t.BertConfig(**wide))
        case "roberta":
            return t.RobertaForCausalLM(t.RobertaConfig(**wide))
        case "electra":
            return t.ElectraForCausalLM(t.ElectraConfig(**wide, embedding_size=32))
        case "mamba":
            return t.MambaForCausalLM(t.MambaConfig(**MAMBA))
        case "mamba2":
            return t.Mamba2ForCausalLM(t.Mamba2Config(**MAMBA, num_heads=8, head_dim=8, n_groups=1, chunk_size=16))
        case "rwkv":
            return t.RwkvForCausalLM(t.RwkvConfig(**{**IDS, "hidden_size": 32, "num_hidden_layers": 2}))
        case "llama":
            return t.LlamaForCausalLM(t.LlamaConfig(**wide))
        case "mistral":
            return t.MistralForCausalLM(t.MistralConfig(**wide, num_key_value_heads=2, sliding_window=32))
        case "gpt2":
            sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
            return t.GPT2LMHeadModel(t.GPT2Config(**sizes, **options))
        case "bloom":
            return t.BloomForCausalLM(t.BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4))
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_model_that_looks_ahead_is_refused_and_the_same_as_a_decoder_is_not(kind: str) -> None:
    with pytest.raises(ModelNotSupported, match="is not a causal language model"):
        choose_layout(build(kind))
    assert choose_layout(build(kind, is_decoder=True)) in ("padded", "logits")


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv"])
def test_packing_is_refused_where_a_row_would_see_the_one_before_it(kind: str) -> None:
    model = build(kind)
    layout = choose_layout(model)
    assert layout == "padded"
    with pytest.raises(InvalidConfig, match="with packing, base_model"):
        check_packing(model, layout)


@pytest.mark.parametrize(
    ("kind", "wanted"), [("llama", "documents"), ("mistral", "documents"), ("gpt2", "documents"), ("bloom", "padded")]
)
def test_packing_is_allowed_where_rows_are_apart(kind: str, wanted: str) -> None:
    model = build(kind)
    layout = choose_layout(model)
    assert layout == wanted
    check_packing(model, layout)


class Strange(t.LlamaForCausalLM):
    """A model that fails, or bends its logits, in a way nobody has thought of."""

    fails_with: type[Exception] | None = None
    bend = 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if self.bend:
            output.logits = self.bend * torch.tanh(output.logits / self.bend)
        return output


class StrangeBackbone(t.LlamaModel):
    """Takes whole rows alone, and fails on bounds of documents with this error."""

    fails_with: type[Exception] = RuntimeError

    def forward(self, *args: Any, cu_seq_lens_q: Tensor | None = None, **kwargs: Any) -> Any:
        if cu_seq_lens_q is not None:
            raise self.fails_with("not here")
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("error", [TypeError, RuntimeError, AttributeError, NotImplementedError, KeyError, IndexError])
def test_any_error_in_a_layouts_trial_leaves_it_for_another(error: type[Exception]) -> None:
    model = build("llama")
    attention = model.config._attn_implementation
    model.model.__class__ = type("Backbone", (StrangeBackbone,), {"fails_with": error})
    assert choose_layout(model) == "padded"
    assert model.config._attn_implementation == attention


def test_logits_that_are_bent_after_the_head_are_learned_from_as_they_are() -> None:
    model = build("llama")
    model.__class__ = type("Bent", (Strange,), {"bend": 20.0})
    assert choose_layout(model) == "logits"


@pytest.mark.parametrize("error", [TypeError, RuntimeError, KeyError])
def test_a_model_that_can_not_read_text_alone_is_refused_in_a_sentence(error: type[Exception]) -> None:
    model = build("llama")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error("pixel_values are missing\nand more")

    model.forward = fail
    with pytest.raises(ModelNotSupported, match="can't compute logits for a row of text alone") as caught:
        choose_layout(model)
    assert "\n" not in str(caught.value)


class Picky(t.LlamaForCausalLM):
    """Never says one of its last tokens, as models do whose vocabulary has images too."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits[..., torch.tensor([60])] = -1e9
        return output


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "mamba", "bent", "picky"])
def test_a_part_of_the_head_decides_as_all_of_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> t.PreTrainedModel:
        model = build("llama" if kind in ("bent", "picky") else kind)
        if kind in ("bent", "picky"):
            model.__class__ = Picky if kind == "picky" else type("Bent", (Strange,), {"bend": 20.0})
        return model

    wanted = choose_layout(make())
    reached = find_reached(make(), set(find_layers(make())))
    monkeypatch.setattr(shortened, "HEAD_ROWS", 24)
    model = make()
    seen = watch_head(model)
    assert find_reached(model, set(find_layers(model))) == reached
    assert choose_layout(model) == wanted
    assert (64 in seen) == (kind == "picky")


def watch_head(model: t.PreTrainedModel) -> set[int]:
    """Sizes of the results of the model's head, which are added as they are computed."""
    seen: set[int] = set()
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.add(output.shape[-1]))
    return seen


def test_a_small_head_is_whole_again_after_a_trial_and_leaves_the_table_of_tokens() -> None:
    model = build("gpt2").eval()  # one table for both
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    whole = head.weight
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids).logits
        with small_head(model, 20):
            assert torch.equal(model(ids).logits, before[..., :20])
            assert head.weight.data_ptr() == whole.data_ptr()
            assert (head.out_features, table.weight.shape[0]) == (20, 64)
            assert draw_text(model, 500).max() == 19
    assert head.weight is table.weight is whole
    assert head.out_features == 64
    with small_head(model, 64):
        assert head.weight is whole


def test_windows_are_small_for_a_trial_and_as_before_after_it() -> None:
    model = build("mistral")
    with small_windows(model):
        assert model.config.sliding_window == 4
    assert model.config.sliding_window == 32


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_rows_are_laid_end_to_end_with_variable_length_attention(kind: str) -> None:
    register_varlen_reference()
    CALLS.clear()
    model = build(kind, **({"attn_pdrop": 0.0} if kind == "gpt2" else {}))
    assert choose_layout(model, "varlen") == "documents"
    assert model.config._attn_implementation == VARLEN_ATTENTION
    windows = {tuple(call["window"]) for call in CALLS}
    assert windows == ({(3, 0)} if kind == "mistral" else {(-1, 0)})
    assert explain_padding(model, "documents") == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attn_pdrop": 0.1}, r"its layers drop attention weights \(at a rate of 0.1\)"),
        ({}, "it does not support the attention implementation varlen"),
    ],
)
def test_attention_kernels_that_do_not_suit_a_model_are_refused_with_the_reason(
    options: dict[str, float], reason: str
) -> None:
    register_varlen_reference()
    model = build("gpt2" if options else "bloom", **options)
    attention = model.config._attn_implementation
    with pytest.raises(InvalidConfig, match=f"attn_implementation varlen does not suit base_model .*: {reason}; set"):
        choose_layout(model, "varlen")
    assert model.config._attn_implementation == attention


def attend_without_gradient(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    return attend_varlen(module, query, key.detach(), value, *args, **kwargs)


def test_a_kernel_with_another_gradient_is_found_before_training() -> None:
    register_varlen_reference()
    t.AttentionInterface.register("crooked", attend_without_gradient)
    with pytest.raises(InvalidConfig, match="its gradient is another one for rows laid end to end"):
        choose_layout(build("llama"), "crooked")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_does_not_know_documents_takes_padded_rows(attention: str) -> None:
    model = build("llama")
    assert choose_layout(model, attention) == "padded"
    assert model.config._attn_implementation == attention


def test_an_old_card_takes_padded_rows_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    reason = find_obstacle(torch.device("cuda"))
    monkeypatch.setattr("sft.training.layout.find_obstacle", lambda device: reason)
    monkeypatch.setattr("sft.training.layout._list_attentions", lambda model, attention: [VARLEN_ATTENTION])
    model = build("llama")
    attention = model.config._attn_implementation
    layout = choose_layout(model)
    assert layout == "padded"
    assert model.config._attn_implementation == attention
    monkeypatch.setattr(t.LlamaForCausalLM, "device", torch.device("cuda"))
    [warning] = explain_padding(model, layout)
    assert warning == (
        "rows are padded to the longest of their batch and grouped by length, which trains slower than rows laid end "
        "to end: it needs a GPU of compute capability 8.0, and this one has 7.5"
    )


@pytest.mark.parametrize(("device", "wanted"), [("cpu", DOCUMENT_ATTENTION), ("cuda", VARLEN_ATTENTION)])
def test_each_device_has_its_attention(monkeypatch: pytest.MonkeyPatch, device: str, wanted: str) -> None:
    monkeypatch.setattr(t.LlamaForCausalLM, "device", torch.device(device))
    assert _list_attentions(build("llama"), "auto") == [wanted]
