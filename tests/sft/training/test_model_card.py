"""The card of a result tells the truth, in the Hub's form, and names no folder of the machine that trained."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from sft.training.model_card import Provenance, name_base

PROVENANCE = Provenance(
    dataset="handbook@v1.1",
    dataset_commit="0" * 40,
    dataset_md5="1" * 32,
    measures={"train_loss": 1.5, "base_eval_loss": 4.25, "eval_loss": 2.125, "steps": 3},
)


def read_card(folder):
    text = (folder / "README.md").read_text()
    card = ModelCard(text)  # parses and checks the metadata as the Hub's client does
    if card.data.base_model:
        validate_repo_id(card.data.base_model)
    assert "[More Information Needed]" not in text
    assert str(Path(folder).parents[1]) not in text
    return card


@pytest.fixture
def licensed(model_path, tmp_path):
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n")
    return folder


def test_an_adapters_card(open_session, licensed, tmp_path):
    session = open_session(model=licensed, max_steps=2, base_model="org/tiny", save_merged_model=True, use_dora=True)
    session.train()
    folder = session.save(tmp_path / "result" / "adapter", PROVENANCE)
    card = read_card(folder)
    assert (card.data.base_model, card.data.library_name, card.data.license) == ("org/tiny", "peft", "apache-2.0")
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert {"lora", "sft"} <= set(card.data.tags)
    for fact in ("handbook@v1.1", "1" * 32, "4.2500", "2.1250", "DoRA", "| rank | 4 |", "`q_proj`", "apache-2.0"):
        assert fact in card.text
    assert 'from_pretrained("org/tiny")' in card.text
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
    (checkpoint,) = (tmp_path / "out" / "checkpoints").glob("checkpoint-*")
    assert not list(checkpoint.rglob("*.md")), "PEFT's card of blanks"
    merged = read_card(folder.with_name("merged"))
    assert (merged.data.library_name, merged.data.to_dict()["base_model_relation"]) == ("transformers", "merge")


def test_a_whole_models_card_without_any_provenance(open_session, tmp_path):
    session = open_session(max_steps=1, use_lora=False, base_model=str(tmp_path / "models" / "tiny"))
    session.train()
    card = read_card(session.save(tmp_path / "result" / "model"))
    assert (card.data.base_model, card.data.license) == ("tiny", None)
    assert "full fine-tuning" in card.text
    assert "Not measured." in card.text
    assert "do not say which one it is" in card.text


@pytest.mark.parametrize(
    ("base_model", "name"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
        ("tiny", "tiny"),
        ("team/group/model", "team/group/model"),
        ("/srv/models/org/tiny", "tiny"),
        ("./models/tiny/", "tiny"),
    ],
)
def test_a_path_is_told_by_its_last_part(base_model, name):
    assert name_base(base_model) == name


def test_a_name_that_the_hub_would_refuse_is_left_out_of_the_metadata(open_session, tmp_path):
    session = open_session(max_steps=1, base_model="team/group/model")
    session.train()
    card = read_card(session.save(tmp_path / "result" / "adapter"))
    assert card.data.base_model is None
    assert "`team/group/model`" in card.text
