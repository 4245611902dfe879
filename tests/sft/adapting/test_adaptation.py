"""What gets an adapter in models of many kinds: chosen by a trial, and said."""

import copy
from collections.abc import Callable

import pytest
import torch
import transformers as t
from peft import get_peft_model

from sft.adapting.adaptation import describe_adaptation, plan_adaptation
from sft.config import SFTConfig
from sft.errors import InvalidConfig
from sft.models.loading import quiet_transformers
from tests.sweep.tiny import build_model

IDS = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MOE = {**IDS, **SIZES, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
MAMBA = {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}


def build_gemma3() -> t.PreTrainedModel:
    text = t.Gemma3TextConfig(**IDS, **SIZES, head_dim=8, query_pre_attn_scalar=8)
    vision = t.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    tokens = {"image_token_index": 61, "boi_token_index": 62, "eoi_token_index": 63}
    config = t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, **tokens)
    return t.Gemma3ForConditionalGeneration(config)


BUILD: dict[str, Callable[[], t.PreTrainedModel]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**IDS, **SIZES)),
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "gemma3": build_gemma3,
    "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(**MAMBA)),
    "mamba2": lambda: t.Mamba2ForCausalLM(t.Mamba2Config(**MAMBA, num_heads=8, head_dim=8, n_groups=1, chunk_size=16)),
    "zamba2": lambda: build_model("zamba2", 64, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}),
    "gemma3n_text": lambda: build_model("gemma3n_text", 64, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}),
    "phimoe": lambda: t.PhimoeForCausalLM(t.PhimoeConfig(**IDS, **SIZES, num_local_experts=4)),
    "qwen2_moe": lambda: t.Qwen2MoeForCausalLM(
        t.Qwen2MoeConfig(**MOE, num_experts=8, shared_expert_intermediate_size=16, decoder_sparse_step=1)
    ),
    "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**MOE, head_dim=8, num_experts=8)),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**IDS, **SIZES, num_local_experts=4)),
    "granitemoe": lambda: t.GraniteMoeForCausalLM(
        t.GraniteMoeConfig(**IDS, **SIZES, num_local_experts=8, num_experts_per_tok=2)
    ),
    "gpt_oss": lambda: t.GptOssForCausalLM(
        t.GptOssConfig(**IDS, **SIZES, head_dim=8, num_local_experts=8, num_experts_per_tok=2)
    ),
}
MIXTURES = ["phimoe", "qwen2_moe", "qwen3_moe", "mixtral", "granitemoe", "gpt_oss"]


@pytest.fixture(scope="module")
def model_of() -> Callable[[str], t.PreTrainedModel]:
    made: dict[str, t.PreTrainedModel] = {}

    def find(kind: str) -> t.PreTrainedModel:
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = BUILD[kind]()
        return made[kind]

    return find


@pytest.mark.parametrize("kind", BUILD)
def test_every_adapter_gets_a_gradient_and_a_plan_counts_what_is_trained(
    model_of: Callable[[str], t.PreTrainedModel], make_config: Callable[..., SFTConfig], kind: str
) -> None:
    model, config = model_of(kind), make_config(lora_dropout=0.05)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    adaptation = plan_adaptation(model, config)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert plan_adaptation(empty, config) == adaptation

    with quiet_transformers():
        adapted = get_peft_model(copy.deepcopy(model), adaptation.settings)
    facts = describe_adaptation(adapted, adaptation.left_out)
    assert facts["trainable_parameters"] == adaptation.trainable
    assert facts["modules"] == adaptation.modules
    assert facts["share"] == pytest.approx(adaptation.trainable / facts["parameters"])
    adapted(input_ids=torch.arange(3, 40)[None], use_cache=False).logits.float().logsumexp(-1).sum().backward()
    still = [name for name, weight in adapted.named_parameters() if "lora_B" in name and not weight.grad.any()]
    assert not still


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_that_stay_as_they_are_are_said_and_routers_are_left_alone(
    model_of: Callable[[str], t.PreTrainedModel], make_config: Callable[..., SFTConfig], kind: str
) -> None:
    model = model_of(kind)
    adaptation = plan_adaptation(model, make_config())
    experts = sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 3)
    (said,) = [part for part in adaptation.left_out if part.what.startswith("experts")]
    assert said.parameters == experts
    share = experts / sum(weight.numel() for weight in model.parameters())
    assert any("experts" in sentence and f"{share:.0%}" in sentence for sentence in adaptation.warnings)
    assert not {"gate", "router", "layer"} & set(adaptation.modules)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_are_adapted_where_they_are_named(
    model_of: Callable[[str], t.PreTrainedModel], make_config: Callable[..., SFTConfig], kind: str
) -> None:
    model = model_of(kind)
    names = sorted({".".join(n.split(".")[-2:]) for n, weight in model.named_parameters() if weight.dim() == 3})
    plain = plan_adaptation(model, make_config())
    adaptation = plan_adaptation(model, make_config(lora_target_modules=["all-linear", *names]))
    assert adaptation.trainable > plain.trainable
    assert set(names) <= set(adaptation.modules)
    assert not any("experts" in sentence for sentence in adaptation.warnings)
    for fields in ({"lora_dropout": 0.05}, {"use_dora": True}):
        with pytest.raises(InvalidConfig, match=f"{next(iter(fields))} can't be used with stacked expert"):
            plan_adaptation(model, make_config(lora_target_modules=names, **fields))


@pytest.mark.parametrize(
    ("kind", "targets", "modules"),
    [
        ("llama", [r"model\.layers\.1\.self_attn\.(q|v)_proj"], {"q_proj": 1, "v_proj": 1}),
        ("llama", ["layers.0.mlp.up_proj", "k_proj"], {"up_proj": 1, "k_proj": 2}),
        ("gemma3", ["q_proj"], {"q_proj": 2}),
        ("mamba", ["in_proj", "x_proj"], {"in_proj": 2, "x_proj": 2}),
        ("qwen2_moe", ["q_proj", "shared_expert_gate"], {"q_proj": 2, "shared_expert_gate": 2}),
    ],
)
def test_named_layers_are_adapted_and_nothing_else(
    model_of: Callable[[str], t.PreTrainedModel],
    make_config: Callable[..., SFTConfig],
    kind: str,
    targets: list[str],
    modules: dict[str, int],
) -> None:
    assert plan_adaptation(model_of(kind), make_config(lora_target_modules=targets)).modules == modules


@pytest.mark.parametrize(
    ("kind", "targets", "words"),
    [
        ("llama", "qq_proj", "has no layer 'qq_proj' to adapt; there are down_proj, gate_proj"),
        ("llama", "lm_head", "has no layer 'lm_head'"),
        ("llama", "embed_tokens", "has no layer 'embed_tokens'"),
        ("llama", "(q_proj", "is not a pattern"),
        ("mamba", "out_proj", "'out_proj' can't be adapted in this model"),
        ("phimoe", "router", "'router' names layers that rows of text do not pass through"),
        ("gemma3", "fc1", "'fc1' names layers that rows of text do not pass through"),
        ("qwen3_moe", "gate_proj", "its experts are stacked parameters, experts.down_proj, experts.gate_up_proj"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(
    model_of: Callable[[str], t.PreTrainedModel],
    make_config: Callable[..., SFTConfig],
    kind: str,
    targets: str,
    words: str,
) -> None:
    with pytest.raises(InvalidConfig, match=words.replace("(", r"\(")) as caught:
        plan_adaptation(model_of(kind), make_config(lora_target_modules=[targets]))
    assert "lora_target_modules" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "is_guess"), [("blt", True), ("inkling2_text", False), ("zaya", False), ("hy_v4", False)]
)
def test_a_plan_counts_what_is_trained_or_says_that_it_may_be_fewer(
    make_config: Callable[..., SFTConfig], kind: str, is_guess: bool
) -> None:
    with quiet_transformers():
        model = build_model(kind, 128, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})
    with torch.device("meta"):
        empty = type(model)(model.config)
    planned, found = (plan_adaptation(each, make_config()) for each in (empty, model))
    assert (planned.is_guess, found.is_guess) == (is_guess, False)
    assert any("can be fewer" in sentence for sentence in planned.warnings) == is_guess
    assert planned.trainable > found.trainable if is_guess else planned == found
    assert not {"fc1", "fc2", "out_proj"} & set(found.modules)  # of a router of several layers


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_rank_beyond_all_memory_is_told_by_its_name(make_config: Callable[..., SFTConfig], device: str) -> None:
    model = BUILD["llama"]().to(device)
    with pytest.raises(InvalidConfig, match=r"lora_r 2147483647 .* its widest layer has 48: set lora_r to less"):
        plan_adaptation(model, make_config(lora_r=2**31 - 1))
