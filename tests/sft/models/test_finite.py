"""Weights that are not numbers are told as such, where they are seen first, and never as a learning rate."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jobs.preflight.adapters import _check_files
from sft.errors import InvalidConfig, ModelUnusable
from sft.models.finite import find_not_finite
from sft.models.loading import quiet_transformers
from sft.models.model_class import build_empty
from sft.planning.shape import measure_shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found_in_a_file(tmp_path, dtype, value):
    largest = torch.full((40,), torch.finfo(dtype).max, dtype=dtype)
    tensors = {"a": largest, "b": -largest, "c": torch.zeros(7, 9, dtype=dtype), "n": torch.ones(3, dtype=torch.int64)}
    save_file(tensors, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    assert find_not_finite(tmp_path / "whole.safetensors") is None
    tensors["c"][6, 8] = value
    save_file(tensors, tmp_path / "broken.safetensors")
    assert find_not_finite(tmp_path / "broken.safetensors") == "c"
    assert find_not_finite(tmp_path / "broken.safetensors", most_bytes=16) is None


@pytest.mark.parametrize(
    ("weight", "place", "fields"),
    [
        ("model.embed_tokens.weight", (..., 0), {}),
        ("model.layers.0.self_attn.q_proj.weight", (3, 4), {}),
        ("model.layers.1.mlp.down_proj.weight", (0, 0), {"packing": True}),
        ("model.norm.weight", (5,), {"mixed_precision": "bf16"}),
        ("lm_head.weight", (300, 0), {"use_lora": False, "learning_rate": 1e-4}),
        ("lm_head.weight", (300, 0), {}),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_base_model_with_numbers_that_are_none_is_refused_by_name(
    model_path, tmp_path, open_session, weight, place, fields, value
):
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights[weight][place] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnusable, match=f"{weight} holds NaN or infinite numbers.*take another model") as error:
        open_session(model=folder, **fields).train()
    assert "learning_rate" not in str(error.value)


def save_adapter(model_path, folder, **settings):
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(model_path)
        kind = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings}
        get_peft_model(model, LoraConfig(**kind)).save_pretrained(folder, save_embedding_layers=False)
    return folder


def lose(part):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def set_first(part, value):
    def change(weights):
        name = next(name for name in weights if part in name)
        broken = weights[name].clone()
        broken.view(-1)[-1] = value
        return weights | {name: broken}

    return change


@pytest.mark.parametrize(
    ("settings", "change", "told", "is_seen_at_submit"),
    [
        ({}, set_first("lora_A", math.nan), "lora_A.* holds NaN or infinite numbers.*take an earlier version", True),
        ({}, set_first("lora_B", -math.inf), "lora_B.* holds NaN or infinite numbers", True),
        ({"use_dora": True}, set_first("magnitude", math.nan), "magnitude_vector.* holds NaN", True),
        ({"modules_to_save": ["lm_head"]}, set_first("lm_head", math.nan), "lm_head.* holds NaN", True),
        (
            {"modules_to_save": ["lm_head"]},
            lose("lm_head"),
            "'lm_head' in modules_to_save.* has no weights of it",
            True,
        ),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, lose("embed_tokens"), "'embed_tokens' in modules_to", True),
        ({"modules_to_save": ["norm"]}, lose("layers.1.input_layernorm"), "lacks .*layers.1.input_layernorm", False),
        ({"trainable_token_indices": [3]}, lose("trainable_tokens"), "trainable_token_indices and .* no vectors", True),
        ({}, lose("lora"), "holds no weights", True),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_to_start_from_that_lacks_or_spoils_its_weights_is_refused(
    model_path, tmp_path, open_session, make_config, settings, change, told, is_seen_at_submit
):
    start = save_adapter(model_path, tmp_path / "start", **settings)
    whole = make_config(adapter_path=str(start))
    measure_shape(build_empty(model_path), whole, model_path)
    assert list(_check_files("start", start)) == []
    save_file(change(load_file(start / "adapter_model.safetensors")), start / "adapter_model.safetensors")
    for use in (
        lambda: measure_shape(build_empty(model_path), whole, model_path),
        lambda: open_session(adapter_path=str(start)),
    ):
        with pytest.raises((ModelUnusable, InvalidConfig), match=told) as error:
            use()
        assert str(error.value).startswith("adapter_path ")
    found = [finding.text for finding in _check_files("start", start)]
    assert len(found) == is_seen_at_submit, found
