"""Names and shapes in a model's files against its configuration: a plan says what the job then does."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.errors import ModelUnusable
from sft.models.loading import list_unread_weights, load_model
from sft.models.model_class import build_empty
from sft.models.weight_names import check_stored_names
from tests.sweep.tiny import build_model
from tests.tiny_models import save_tiny_model


@pytest.fixture
def folder(tmp_path):
    return save_tiny_model("llama", tmp_path / "model")


def configure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def add(folder, **weights):
    rewrite(folder, lambda stored: stored.update({name.replace("__", "."): value for name, value in weights.items()}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: None, []),
        (
            lambda f: configure(f, num_hidden_layers=1, layer_types=None),
            ["9 weights in the base model's files are not"],
        ),
        (lambda f: add(f, model__layers__0__self_attn__q_proj__bias=torch.ones(64)), ["1 weights in the base model's"]),
        (
            lambda f: add(f, value_head__weight=torch.ones(1, 64)),
            ["1 weights in the base model's files are not used, v"],
        ),
        (
            lambda f: configure(f, tie_word_embeddings=True),
            ["config.json says by tie_word_embeddings that lm_head.wei"],
        ),
        (lambda f: rewrite(f, lambda w: w.update({n: v.half() for n, v in w.items()})), []),
    ],
)
def test_weights_that_are_not_used_are_told_by_plan_and_job(folder, make_config, change, told):
    change(folder)
    config = make_config()
    planned = check_stored_names(build_empty(folder), folder, "base_model tiny")
    loaded = load_model(folder, config)
    assert planned == list_unread_weights(loaded)
    assert len(planned) == len(told)
    assert all(sentence.startswith(start) for sentence, start in zip(planned, told, strict=True)), planned


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: configure(f, num_hidden_layers=3), "lacks 9 of the model's weights, model.layers.2"),
        (lambda f: configure(f, attention_bias=True), "lacks 8 of the model's weights"),
        (lambda f: rewrite(f, lambda w: w.pop("lm_head.weight")), "lm_head.weight .* set tie_word_embeddings to true"),
        (lambda f: rewrite(f, lambda w: w.pop("model.norm.weight")), "lacks 1 .*, model.norm.weight for one, which wo"),
        (lambda f: configure(f, vocab_size=400), "2 of its weights have other shapes than config.json says"),
        (lambda f: configure(f, intermediate_size=64), "6 of its weights have other shapes"),
        (lambda f: configure(f, architectures=["GPT2LMHeadModel"], model_type="gpt2"), "lacks|other shapes"),
    ],
)
def test_weights_that_would_be_random_are_refused_by_plan_and_job(folder, make_config, change, told):
    change(folder)
    config = make_config()
    with pytest.raises(ModelUnusable, match=told) as planned:
        check_stored_names(build_empty(folder), folder, f"base_model {config.base_model}")
    with pytest.raises(ModelUnusable) as loaded:
        load_model(folder, config)
    assert str(planned.value) == str(loaded.value)
    assert "\n" not in str(planned.value)


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "gemma3", "bart"])
def test_names_that_transformers_changes_as_it_loads_are_known(tmp_path: Path, kind):
    build_model(kind, 400, {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}).save_pretrained(tmp_path)
    assert check_stored_names(build_empty(tmp_path), tmp_path, "base_model tiny") == []
    first = next(name for name in load_file(tmp_path / "model.safetensors") if "layers.0" in name and "exp" not in name)
    rewrite(tmp_path, lambda weights: weights.pop(first))
    with pytest.raises(ModelUnusable, match="lacks 1 of the model's weights"):
        check_stored_names(build_empty(tmp_path), tmp_path, "base_model tiny")
