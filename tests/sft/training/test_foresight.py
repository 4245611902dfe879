"""The layout that is foreseen without weights and without the device is the one that the job chooses there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from transformers import AutoModelForCausalLM, PreTrainedModel

from sft.errors import InvalidConfig
from sft.models.loading import quiet_transformers
from sft.models.model_class import build_empty
from sft.training.foresight import Place, find_refusal, foresee_layout
from sft.training.layout import choose_layout
from tests.tiny_models import save_tiny_model
from tests.varlen_reference import register_varlen_reference

CPU = Place("cpu", torch.float32)
H100 = Place("cuda", torch.bfloat16, (9, 0))
RTX4090 = Place("cuda", torch.bfloat16, (8, 9))
T4 = Place("cuda", torch.float16, (7, 5))
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
WIDE = {**IDS, **SIZES, "max_position_embeddings": 64}
OTHERS: dict[str, Any] = {
    "mistral": lambda: t.MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=32),
    "mixtral": lambda: t.MixtralConfig(**WIDE, num_key_value_heads=2, num_local_experts=4),
    "granite": lambda: t.GraniteConfig(**WIDE, logits_scaling=8.0),
    "cohere": lambda: t.CohereConfig(**WIDE, logit_scale=0.25),
    "phi3": lambda: t.Phi3Config(**WIDE),
    "qwen3": lambda: t.Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=8),
    "olmo2": lambda: t.Olmo2Config(**WIDE),
    "gpt-oss": lambda: t.GptOssConfig(**WIDE, num_key_value_heads=2, num_local_experts=4, head_dim=8),
    "gpt-neox": lambda: t.GPTNeoXConfig(**WIDE),
    "bloom": lambda: t.BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4),
    "mamba": lambda: t.MambaConfig(**IDS, hidden_size=32, num_hidden_layers=2, state_size=8),
    "falcon-h1": lambda: t.FalconH1Config(
        **WIDE, num_key_value_heads=2, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    ),
}


def build(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    with quiet_transformers():
        return AutoModelForCausalLM.from_config(OTHERS[kind]())


def empty(kind: str) -> PreTrainedModel:
    with torch.device("meta"):
        return build(kind)


@pytest.fixture(params=["llama", "qwen2", "gemma", "gemma2", "gemma3", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_tiny_model(request.param, tmp_path / request.param)


def test_on_a_cpu_it_is_what_the_trial_of_the_loaded_model_finds(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert foresee_layout(build_empty(folder), "auto", CPU) == choose_layout(model)


@pytest.mark.parametrize("kind", OTHERS)
def test_so_it_is_for_other_architectures(kind: str) -> None:
    assert foresee_layout(empty(kind), "auto", CPU) == choose_layout(build(kind))


def test_on_a_gpu_it_is_what_the_trial_with_variable_length_attention_finds(folder: Path) -> None:
    """A reference takes the kernel's place; it computes every dtype and width, as an H100 does in bf16."""
    register_varlen_reference()
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.train()
    wanted = foresee_layout(build_empty(folder), "auto", H100)
    if wanted == "documents":
        assert choose_layout(model, "varlen") == wanted
        return
    assert choose_layout(model, "eager") == wanted
    for choose in (lambda: choose_layout(model, "varlen"), lambda: foresee_layout(build_empty(folder), "varlen", H100)):
        with pytest.raises(InvalidConfig, match="attn_implementation varlen does not suit base_model"):
            choose()


def test_older_cards_and_fp32_pad(tmp_path: Path) -> None:
    model = build_empty(save_tiny_model("llama", tmp_path / "llama"))
    own = model.config._attn_implementation
    assert foresee_layout(model, "auto", H100) == "documents"
    assert foresee_layout(model, "auto", T4) == "padded"
    assert foresee_layout(model, "auto", Place("cuda", torch.float32, (9, 0))) == "padded"
    assert foresee_layout(model, "sdpa", H100) == "padded"
    assert foresee_layout(model, "flash_attention_2", H100) == "documents"
    assert find_refusal(model, "auto", T4) == "it needs a GPU of compute capability 8.0, and this one has 7.5"
    with pytest.raises(InvalidConfig, match=r"varlen does not suit .*this one has 7\.5; set it to auto"):
        foresee_layout(model, "varlen", T4)
    assert model.config._attn_implementation == own


def test_wide_heads_depend_on_the_card() -> None:
    settings = t.LlamaConfig(**{**WIDE, "num_attention_heads": 2, "num_key_value_heads": 1}, head_dim=256)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    assert foresee_layout(model, "auto", H100) == "documents"
    assert foresee_layout(model, "auto", RTX4090) == "padded"


def test_attention_that_drops_weights_pads_on_a_gpu_alone() -> None:
    settings = t.LlamaConfig(**WIDE, attention_dropout=0.1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    assert find_refusal(model, "auto", H100) == "its layers drop attention weights (at a rate of 0.1)"
    assert foresee_layout(model, "auto", CPU) == "documents"
