"""GGUF files of llama.cpp's own converter hold the weights, the scale and the tokenizer of the adapter."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.adapting.merging import plan_merge
from sft.errors import ExportRefused
from sft.exporting.gguf_conversion import convert_adapter, convert_model, find_converter, stage
from sft.models.loading import quiet_transformers

LLAMA_CPP = os.environ.get("LLAMA_CPP_PYTHON")  # a folder with llama-cpp-python, which is built from source
QUESTION = [{"role": "user", "content": "Name three colours!"}]


@pytest.fixture(scope="module")
def made(pair, tmp_path_factory):
    """GGUF files of the base model, the adapter, and both merged."""
    folder = tmp_path_factory.mktemp("made")
    converter = find_converter(None)
    assert stage(folder / "staged", pair.base, pair.adapter, False) == []
    convert_model(converter, folder / "staged", folder / "model.gguf", "tiny", "f32")
    convert_adapter(converter, pair.adapter, folder / "staged", folder / "adapter.gguf")
    (folder / "whole").mkdir()
    with quiet_transformers():
        plan_merge(pair.base, pair.adapter, "base_model tiny").write(folder / "whole")
    stage(folder / "staged-whole", folder / "whole", pair.adapter, True)
    convert_model(converter, folder / "staged-whole", folder / "merged.gguf", "tiny", "f32")
    return folder


def read_tensors(path):
    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def read_field(path, name):
    return GGUFReader(path).get_field(name).contents()


def adapt(base, folder):
    with quiet_transformers():
        return PeftModel.from_pretrained(base, str(folder))


def generate(model, ids):
    with torch.no_grad():
        return model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=None)[0].tolist()


def test_base_and_adapter_together_are_the_merged_model(made):
    """llama.cpp adds `B @ A` times lora_alpha / rank to each weight of the same name."""
    base, merged, adapter = (read_tensors(made / f"{name}.gguf") for name in ("model", "merged", "adapter"))
    alpha = read_field(made / "adapter.gguf", "adapter.lora.alpha")
    adapted = {name.removesuffix(".lora_a") for name in adapter if name.endswith(".lora_a")}
    assert len(adapted) == 2 * 7
    assert alpha == 12
    assert base.keys() == merged.keys() > adapted
    for name in base:
        added = 0.0
        if name in adapted:
            a, b = adapter[f"{name}.lora_a"], adapter[f"{name}.lora_b"]
            added = b @ a * (alpha / len(a))
            assert np.abs(added).max() > 0.01
        np.testing.assert_allclose(base[name] + added, merged[name], atol=1e-5)


def test_the_model_is_read_back_as_it_was(made, pair):
    """By transformers' own reader of GGUF: the same tokens, for the merged model those of PEFT."""
    ids = AutoTokenizer.from_pretrained(pair.adapter).apply_chat_template(QUESTION, add_generation_prompt=True)
    ids = ids["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(pair.base, dtype=torch.float32)
    read = AutoModelForCausalLM.from_pretrained(made, gguf_file="model.gguf", dtype=torch.float32)
    assert generate(read, ids) == generate(base, ids)
    adapted = generate(adapt(base, pair.adapter), ids)
    whole = AutoModelForCausalLM.from_pretrained(made, gguf_file="merged.gguf", dtype=torch.float32)
    assert generate(whole, ids) == adapted != generate(read, ids)


def test_the_tokenizer_is_the_adapters(made, pair):
    tokenizer = AutoTokenizer.from_pretrained(pair.adapter)
    field = "tokenizer.ggml"
    assert read_field(made / "model.gguf", f"{field}.eos_token_id") == tokenizer.eos_token_id
    assert read_field(made / "model.gguf", f"{field}.tokens")[tokenizer.eos_token_id] == "<|im_end|>"
    assert read_field(made / "model.gguf", "tokenizer.chat_template") == tokenizer.chat_template
    assert read_field(made / "model.gguf", f"{field}.add_bos_token") is False
    assert read_field(made / "merged.gguf", f"{field}.add_bos_token") is True


def test_code_of_a_model_is_not_laid_out(pair, tmp_path):
    base = shutil.copytree(pair.base, tmp_path / "base")
    adapter = shutil.copytree(pair.adapter, tmp_path / "adapter")
    for path in (base / "config.json", adapter / "tokenizer_config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.T", None]}}))
    for folder in (base, adapter):
        (folder / "evil.py").write_text("raise SystemExit('ran')")
    stage(tmp_path / "staged", base, adapter, None)
    assert "evil" not in " ".join(path.name for path in (tmp_path / "staged").iterdir())
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "staged" / name).read_text())


def test_what_the_converter_does_not_know_is_its_own_words(pair, tmp_path):
    stage(tmp_path / "staged", pair.base, pair.adapter, None)
    values = json.loads((tmp_path / "staged/config.json").read_text())
    (tmp_path / "staged/config.json").write_text(json.dumps(values | {"architectures": ["NoSuchForCausalLM"]}))
    with pytest.raises(ExportRefused, match=r"convert_hf_to_gguf.py can't convert this model: .*NoSuchForCausalLM"):
        convert_model(find_converter(None), tmp_path / "staged", tmp_path / "model.gguf", "tiny", "f32")


def test_weights_of_other_kinds_are_refused(pair, tmp_path):
    base = shutil.copytree(pair.base, tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ExportRefused, match="not stored as safetensors; add --merged"):
        stage(tmp_path / "one", base, pair.adapter, None)
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(values | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ExportRefused, match="stored quantized"):
        stage(tmp_path / "two", base, pair.adapter, None)


def test_pieces_of_words_without_their_order_are_told(pair, tmp_path):
    adapter = shutil.copytree(pair.adapter, tmp_path / "adapter")
    values = json.loads((adapter / "tokenizer.json").read_text())
    values["model"] |= {"merges": [["a", "b"]], "byte_fallback": True}
    (adapter / "tokenizer.json").write_text(json.dumps(values))
    (warning,) = stage(tmp_path / "one", pair.base, adapter, None)
    assert "no tokenizer.model" in warning
    (adapter / "tokenizer.model").write_bytes(b"pieces")
    assert stage(tmp_path / "two", pair.base, adapter, None) == []
    assert (tmp_path / "two/tokenizer.model").read_bytes() == b"pieces"


def test_a_missing_converter_is_told_with_the_command(tmp_path, monkeypatch):
    with pytest.raises(ExportRefused, match=r"--llama-cpp .* has no convert_hf_to_gguf.py"):
        find_converter(tmp_path)
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda **_: iter(()))
    with pytest.raises(ExportRefused, match=r"pip install 'tuneyard\[gguf\]'.*--llama-cpp"):
        find_converter(None)


@pytest.mark.skipif(LLAMA_CPP is None, reason="LLAMA_CPP_PYTHON names no folder with llama-cpp-python")
def test_llama_cpp_generates_the_same_tokens(made, pair):
    tokenizer = AutoTokenizer.from_pretrained(pair.adapter)
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(pair.base, dtype=torch.float32)
    expected = {"": generate(base, ids)}
    expected["adapter.gguf"] = generate(adapt(base, pair.adapter), ids)
    text = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    child = Path(__file__).with_name("llama_cpp_child.py")
    for lora, tokens in expected.items():
        given = json.dumps({"model": str(made / "model.gguf"), "lora": lora and str(made / lora), "text": text})
        path = f"{LLAMA_CPP}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, str(child)], input=given, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        assert answer["prompt"] == ids
        assert ids + answer["tokens"] == tokens
