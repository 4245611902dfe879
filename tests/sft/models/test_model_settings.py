"""Odd entries in a model's config.json: left aside and said where they say nothing of the model, else one sentence."""

import json
import shutil
from pathlib import Path

import pytest

from sft.errors import ModelUnusable
from sft.models.loading import load_model
from sft.models.model_class import build_empty
from sft.models.model_settings import describe_repairs, read_settings
from tests.sweep.tiny import build_model

SUBJECT = "base_model tiny"


@pytest.fixture
def configure(model_path, tmp_path):
    """A copy of the tiny model with other entries in its config.json."""

    def make(**fields):
        folder = Path(shutil.copytree(model_path, tmp_path / "model"))
        values = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return make


@pytest.mark.parametrize(
    "fields",
    [
        {"return_dict": False},
        {"return_dict": None},
        {"use_return_dict": False},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"torchscript": True},
        {"use_cache": None},
        {"use_cache": "yes"},
        {"dtype": "bfloat"},
        {"torch_dtype": "float99"},
        {"dtype": 5},
        {"dtype": "auto"},
        {"architectures": 5},
        {"architectures": "LlamaForCausalLM"},
        {"id2label": ["a"]},
        {"label2id": 5},
        {"attn_implementation": "flash_attention_2"},
        {"generation_config": 5},
        {"pad_token_id": 10**6},
        {"to_dict": 5},
        {"__class__": "x"},
        {"attribute_map": 5},
        {"use_cache": "yes", "return_dict": False, "dtype": "half-ish"},
    ],
    ids=str,
)
def test_entries_that_say_nothing_of_the_model_are_left_aside_and_said(configure, make_config, fields):
    folder = configure(**fields)
    told = describe_repairs(folder)
    assert len(told) == 1
    assert all(f"{name} {value!r}" in told[0] for name, value in fields.items())
    settings = load_model(folder, make_config()).config
    assert (settings.return_dict, settings.output_hidden_states, settings.output_attentions) == (True, False, False)
    assert settings.to_json_string()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_cache": False},
        {"return_dict": True},
        {"dtype": "bfloat16"},
        {"torch_dtype": None},
        {"pad_token_id": -1},
    ],
    ids=str,
)
def test_usual_entries_are_said_nothing_of(configure, fields):
    assert describe_repairs(configure(**fields)) == []


def test_a_run_on_such_a_model_is_the_run_on_the_plain_one(configure, model_path, open_session):
    plain = open_session("plain", max_steps=2)
    odd = open_session(
        "odd",
        model=configure(return_dict=False, output_attentions=True, use_cache=None, dtype="auto", to_dict=5),
        max_steps=2,
        save_steps=1,
    )
    assert odd.train()["train_loss"] == plain.train()["train_loss"]
    assert len(odd.warnings) == 1
    assert "to_dict 5" in odd.warnings[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_size": 0}, "hidden_size in its config.json must be above 0, got 0"),
        ({"hidden_size": -64}, "hidden_size in its config.json must be above 0, got -64"),
        ({"hidden_size": "64"}, 'hidden_size in its config.json must be a whole number, got "64"'),
        ({"hidden_size": None}, "hidden_size in its config.json must be a whole number, got null"),
        ({"hidden_size": 63}, "contradicts itself .*63.* is not a multiple of the number of attention heads"),
        ({"num_attention_heads": 3}, "contradicts itself"),
        ({"num_attention_heads": 0}, "num_attention_heads in its config.json must be above 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads in its config.json must be above 0, got 0"),
        ({"head_dim": 0}, "head_dim in its config.json must be above 0, got 0"),
        ({"head_dim": -16}, "head_dim in its config.json must be above 0, got -16"),
        ({"num_hidden_layers": 0}, "num_hidden_layers in its config.json must be above 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers in config.json must be at most 4096, got 1000000000"),
        ({"vocab_size": 10**13}, r"other shapes than config.json says, .* should be \(10000000000000, 64\)"),
        ({"hidden_size": 10**12}, "other shapes than config.json says"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings in its config.json must be true or false, got null"),
        ({"rms_norm_eps": "1e-6"}, 'rms_norm_eps in its config.json must be a number, got "1e-6"'),
        ({"hidden_act": "nope"}, "hidden_act 'nope' in its config.json is not known"),
        ({"rope_parameters": {"rope_type": "nope"}}, "rope_type 'nope' in its config.json is not known"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys in `rope_parameters`"),
        ({"rope_parameters": "x"}, "rope_parameters in its config.json must be an object or null"),
        ({"attention_dropout": 2}, "attention_dropout in its config.json must be from 0 to below 1, got 2"),
        ({"attention_dropout": None}, "attention_dropout in its config.json must be from 0 to below 1, got null"),
        ({"model_type": "nosuch"}, "model_type 'nosuch' in its config.json is not known"),
        ({"model_type": None}, "config.json names no model_type"),
        ({"eos_token_id": "x"}, "eos_token_id in its config.json must be a whole number or a list or null"),
        ({"quantization_config": {}}, "quantization_config in its config.json must be an object with a quant_method"),
        ({"quantization_config": "x"}, "quantization_config in its config.json must be an object"),
        ({"text_config": {"hidden_size": 1}}, "can't be followed"),
    ],
    ids=str,
)
def test_entries_that_can_not_be_right_are_refused_by_name(configure, make_config, fields, told):
    folder = configure(**fields)
    with pytest.raises(ModelUnusable, match=told) as refused:
        load_model(folder, make_config())
    assert str(refused.value).startswith(SUBJECT)
    for words in ("StrictDataclass", "pip install", "\n", "Error:"):
        assert words not in str(refused.value)


@pytest.mark.parametrize("fields", [{"hidden_size": 64.0}, {"rms_norm_eps": 1}, {"initializer_range": 0}], ids=str)
def test_a_number_of_the_other_kind_is_the_same_number(configure, fields):
    settings = read_settings(configure(**fields), SUBJECT)
    assert {name: getattr(settings, name) for name in fields} == fields
    assert build_empty(Path(settings.name_or_path)).config.hidden_size == 64


def test_sizes_that_are_zero_in_models_that_count_otherwise_are_not_refused(tmp_path):
    build_model("glm5_next", 400, {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["head_dim"] == 0
    assert read_settings(tmp_path, SUBJECT).model_type == "glm5_next"
