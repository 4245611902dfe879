"""A result's tokenizer is written so that transformers 4 opens it; what that version does not know is not in it."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sft.models.portable_tokenizer import save_portable


def declare(folder, name):
    """As transformers 4 writes it."""
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values["additional_special_tokens"] = values.pop("extra_special_tokens")
    values.pop("backend")
    (folder / "tokenizer_config.json").write_text(json.dumps(values | {"tokenizer_class": name}))


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("PreTrainedTokenizerFast", "PreTrainedTokenizerFast"),
        ("GPT2Tokenizer", {"GPT2Tokenizer", "PreTrainedTokenizerFast"}),
        ("LlamaTokenizerFast", {"LlamaTokenizerFast", "PreTrainedTokenizerFast"}),
        ("NeverHeardOfTokenizer", "PreTrainedTokenizerFast"),
        (None, "PreTrainedTokenizerFast"),
    ],
)
def test_any_class_of_the_base_model_is_written_as_version_4_reads_it(model_path, tmp_path, declared, written):
    base = Path(shutil.copytree(model_path, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    if declared:
        declare(base, declared)
    (tmp_path / "out").mkdir()
    save_portable(tokenizer, tmp_path / "out", base)
    values = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] in ({written} if isinstance(written, str) else written)
    assert values["additional_special_tokens"] == ["<|im_start|>", "<|im_end|>"]
    assert not {"extra_special_tokens", "is_local", "local_files_only"} & set(values)
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "<|im_start|>user\nSay 3.<|im_end|>\n"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert (again.eos_token, again.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)


def test_a_class_that_reads_otherwise_is_not_taken(model_path, tmp_path, monkeypatch):
    base = Path(shutil.copytree(model_path, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    declare(base, "LlamaTokenizerFast")
    read = AutoTokenizer.from_pretrained

    def misread(folder, **options):
        found = read(folder, **options)
        name = json.loads((Path(folder) / "tokenizer_config.json").read_text())["tokenizer_class"]
        return (lambda text, add_special_tokens: {"input_ids": []}) if name == "LlamaTokenizerFast" else found

    monkeypatch.setattr("sft.models.portable_tokenizer.AutoTokenizer.from_pretrained", misread)
    (tmp_path / "out").mkdir()
    save_portable(tokenizer, tmp_path / "out", base)
    values = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
