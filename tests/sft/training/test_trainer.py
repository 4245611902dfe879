"""Numbers of the training step, against transformers' own forward pass and cross-entropy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft.kernels.fused_lora import fuse_adapters
from sft.kernels.loss import sum_nll
from sft.kernels.packing import DOCUMENT_ATTENTION
from sft.models.loading import quiet_transformers
from sft.training.layout import choose_layout

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def build_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    match kind:
        case "mistral with a sliding window":
            return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**SIZES))
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2)
            )
        case "gemma2 with soft caps":
            return Gemma2ForCausalLM(Gemma2Config(**SIZES, query_pre_attn_scalar=8, final_logit_softcapping=1.0))
        case "mamba":
            return MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4))
    raise ValueError(kind)


@pytest.fixture
def rows() -> list[dict[str, list[int]]]:
    """Three documents; some tokens are not supervised, the first of the second is (and can't be predicted)."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for length, ignored in ((9, 4), (17, 0), (3, 1)):
        ids = torch.randint(1, 97, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * ignored + ids[ignored:]})
    return made


def collate(rows: list[dict[str, Any]], padding_free: bool) -> dict[str, Any]:
    return dict(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)(rows))


def reference_nll(model: PreTrainedModel, row: dict[str, list[int]]) -> Tensor:
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
    return cross_entropy(logits[:-1], torch.tensor(row["labels"])[1:], ignore_index=-100, reduction="sum")


def take_gradients(model: PreTrainedModel, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kind", ["mistral with a sliding window", "qwen3", "gpt2"])
@pytest.mark.parametrize("layout", ["documents", "padded"])
def test_a_batch_has_the_loss_and_gradients_of_its_documents_alone(
    kind: str, layout: str, rows: list[dict[str, list[int]]]
) -> None:
    model = build_model(kind).eval()
    expected = torch.stack([reference_nll(model, row) for row in rows]).sum()
    expected_gradients = take_gradients(model, expected)

    assert choose_layout(model) == "documents"
    assert model.config._attn_implementation == DOCUMENT_ATTENTION
    total, count = sum_nll(model, collate(rows, padding_free=layout == "documents"))
    assert count == 5 + 16 + 2
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(take_gradients(model, total), expected_gradients, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_a_document_never_sees_its_neighbours(model_path: Path, rows: list[dict[str, list[int]]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    assert choose_layout(model) == "documents"
    batch = collate(rows, padding_free=True)
    batch["labels"][:, : 9 + 17] = -100  # only the last document counts
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, : 9 + 17] = 5
    with torch.no_grad():
        assert torch.equal(sum_nll(model, batch)[0], sum_nll(model, changed)[0])


def test_generating_is_unchanged_by_document_attention(model_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)
    assert choose_layout(model) == "documents"
    assert torch.equal(model.generate(ids, **options), expected)


@pytest.mark.parametrize(
    ("kind", "layout"), [("gemma2 with soft caps", "trl"), ("mamba", "padded"), ("qwen3", "documents")]
)
def test_a_model_that_would_learn_from_a_wrong_loss_gets_another_layout(kind: str, layout: str) -> None:
    model = build_model(kind)
    attention = model.config._attn_implementation
    assert choose_layout(model) == layout
    assert model.training
    assert (model.config._attn_implementation == attention) == (layout != "documents")


class MixingLayer(Qwen3DecoderLayer):
    """Adds to each token the mean of all before it in the row, whichever document they are of."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mixed: Tensor = super().forward(hidden_states, *args, **kwargs)
        return mixed + mixed.cumsum(dim=1) / torch.arange(1, mixed.shape[1] + 1)[:, None]


def test_a_layer_of_another_kind_is_found_far_down_and_all_layers_stay() -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "num_hidden_layers": 6}))
    assert choose_layout(model) == "documents"
    layers = [*model.model.layers]
    assert len(layers) == 6
    model.model.layers[4] = MixingLayer(model.config, 4)
    assert choose_layout(model) == "padded"
    assert [*model.model.layers][:4] == layers[:4]
    assert len(model.model.layers) == 6


def test_the_head_scores_learned_positions_alone(model_path: Path, rows: list[dict[str, list[int]]]) -> None:
    """Counted in operations: a token that is read but not learned costs none of the head's products."""
    model = AutoModelForCausalLM.from_pretrained(model_path).requires_grad_(False)
    choose_layout(model)
    model.get_input_embeddings().weight.requires_grad_(True)  # so that gradients go all the way down
    batch, few = collate(rows, padding_free=True), collate(rows, padding_free=True)
    few["labels"][:, 9:26] = -100  # leaves 5 and 2 of 5 + 16 + 2

    def count_flops(inputs: dict[str, Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            sum_nll(model, inputs)[0].backward()
        return counter.get_total_flops()

    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    assert count_flops(batch) - count_flops(few) == 16 * (3 if tied else 2) * 2 * head.numel()


def test_frozen_weights_cost_no_gradient_of_their_own(model_path: Path, rows: list[dict[str, list[int]]]) -> None:
    """A LoRA step is two passes over the frozen weights, forward and to the inputs; a third would fill gradients."""
    base = AutoModelForCausalLM.from_pretrained(model_path)
    choose_layout(base)
    weights = sum(module.weight.numel() for module in base.model.layers.modules() if isinstance(module, nn.Linear))
    with quiet_transformers():
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=1, target_modules="all-linear"))
    fuse_adapters(model)
    batch = collate(rows, padding_free=True)
    batch["labels"][:, 1:] = -100
    batch["labels"][0, -1] = 5  # one position for the head
    with FlopCounterMode(display=False) as counter:
        sum_nll(model, batch)[0].backward()
    tokens = batch["input_ids"].numel()
    assert counter.get_total_flops() < 5 * weights * tokens
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora_" not in name)


def test_every_weight_learns_when_the_head_is_not_frozen(model_path: Path, rows: list[dict[str, list[int]]]) -> None:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(model_path)
    choose_layout(model)
    sum_nll(model, collate(rows, padding_free=True))[0].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
