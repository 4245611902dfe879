"""What stands beside the weights can be saved, and is known to be before training begins."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from sft.errors import InvalidConfig, ModelUnusable

LLAMA_2 = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}


def begun(*arguments):
    pytest.fail("training has begun")


@pytest.mark.parametrize(
    ("published", "left_out", "kept"),
    [
        (LLAMA_2, "temperature, top_p", {}),
        ({"temperature": 0.6, "max_new_tokens": 64}, "temperature", {"max_new_tokens": 64}),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, None, {"do_sample": True, "temperature": 0.6}),
        ({"num_beams": 1, "length_penalty": 2.0, "early_stopping": True}, "length_penalty, early_stopping", {}),
        ({"eos_token_id": "x", "top_k": [1]}, "eos_token_id, top_k", {}),
        ({"num_return_sequences": 3}, "num_return_sequences", {}),
        ({"pad_token_id": -1, "max_length": 40}, None, {"max_length": 40}),
    ],
    ids=str,
)
def test_any_published_generation_config_can_be_saved(model_path, tmp_path, open_session, published, left_out, kept):
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0} | published))
    session = open_session(model=folder, max_steps=1, save_merged_model=True)
    session.train()
    adapter = session.save(tmp_path / "adapter")
    for saved in (adapter, adapter.with_name("merged")):
        read = GenerationConfig.from_pretrained(saved)
        read.validate(strict=True)
        assert {name: getattr(read, name) for name in kept} == kept
        assert read.eos_token_id == ([2] if published.get("eos_token_id") else [2, 0])
    AutoModelForCausalLM.from_pretrained(adapter.with_name("merged")).save_pretrained(tmp_path / "again")
    told = [warning for warning in session.warnings if "generation_config.json" in warning]
    assert [warning.rpartition(": ")[2] for warning in told] == ([left_out] if left_out else [])


def test_full_fine_tuning_saves_checkpoints_and_model_too(model_path, tmp_path, open_session):
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0} | LLAMA_2))
    session = open_session(model=folder, max_steps=1, use_lora=False, save_steps=1)
    session.train()
    assert (session.save(tmp_path / "whole") / "model.safetensors").is_file()


def test_a_tokenizer_that_cant_be_saved_is_found_before_training(open_session, monkeypatch):
    session = open_session(max_steps=1)
    monkeypatch.setattr(session.trainer, "training_step", begun)

    def save_pretrained(folder):
        raise TypeError("Object of type set is not JSON serializable")

    session.tokenizer.save_pretrained = save_pretrained
    with pytest.raises(
        ModelUnusable, match="base_model tiny: its tokenizer or generation config can't be saved: Object"
    ):
        session.train()


def test_a_model_config_that_cant_be_saved_is_found_before_training(open_session, monkeypatch):
    session = open_session(max_steps=1)
    monkeypatch.setattr(session.trainer, "training_step", begun)
    session.trainer.model.get_base_model().config.strange = {1, 2}
    with pytest.raises(ModelUnusable, match="base_model tiny: its configuration can't be saved"):
        session.train()


@pytest.mark.parametrize("place", ["out", "out/checkpoints"])
def test_a_folder_that_cant_be_written_to_is_found_before_training(open_session, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("a file where the folder should be")
    with pytest.raises(InvalidConfig, match=r"(output|checkpoint)_dir .* can't be written to"):
        open_session(max_steps=1)


def test_trying_leaves_nothing_behind(open_session, tmp_path):
    open_session(max_steps=1).train()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoints"]
