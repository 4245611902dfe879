import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from sft.config import SFTConfig
from sft.errors import InvalidConfig, ModelNotFound
from sft.models.hardware import Hardware
from sft.models.loading import (
    DtypeSupport,
    choose_dtype,
    find_model,
    list_unread_weights,
    load_model,
    load_tokenizer,
    measure_gemm,
    quiet_transformers,
)
from sft.training.session import TrainingSession
from tests.tiny_models import save_tiny_model

MakeConfig = Callable[..., SFTConfig]


def machine(has_cuda: bool = False, has_bf16: bool = False, seconds: tuple[float, float] = (1.0, 1.0)) -> DtypeSupport:
    return DtypeSupport(has_cuda, has_bf16, lambda: seconds)


def test_a_model_below_the_root_is_found(model_path: Path, tmp_path: Path) -> None:
    shutil.copytree(model_path, tmp_path / "org" / "tiny")
    (tmp_path / "org" / "other").symlink_to("tiny")
    assert find_model("org/tiny", tmp_path) == tmp_path / "org" / "tiny"
    assert find_model("org/other", tmp_path) == tmp_path / "org" / "other"
    assert find_model(str(tmp_path / "org" / "tiny"), tmp_path) == tmp_path / "org" / "tiny"


def test_a_link_leads_out_of_the_root_only_to_an_allowed_one(model_path: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    (root / "whole").symlink_to(model_path)
    shutil.copytree(model_path, root / "part")
    (root / "part" / "model.safetensors").unlink()
    (root / "part" / "model.safetensors").symlink_to(model_path / "model.safetensors")
    for name, place in (("whole", "whole"), ("part", "part/model.safetensors")):
        with pytest.raises(ModelNotFound, match=f"{root / place} is a link that leaves .*ALLOWED_MODEL_ROOTS"):
            find_model(name, root)
        assert find_model(name, root, [model_path.parent]) == root / name


def test_a_miss_names_every_place_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    (tmp_path / "org" / "empty").mkdir(parents=True)
    start = time.monotonic()
    with pytest.raises(ModelNotFound) as error:
        find_model("org/empty", tmp_path)
    assert time.monotonic() - start < 40
    message = str(error.value)
    assert f"the model root ({tmp_path}/org/empty has no config.json)" in message
    assert "the Hugging Face cache (has no such model)" in message
    assert "the Hub (" in message
    assert message.endswith(f"Put its files into {tmp_path}/org/empty or name another model")


@pytest.mark.parametrize("name", ["../outside", "org/../../outside", "/etc", "."])
def test_no_name_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match="must be a model id or a path below the model root"):
        find_model(name, tmp_path / "models")


def test_a_model_in_the_hugging_face_cache_is_found(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(model_path, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert find_model("org/tiny", tmp_path / "models") == repository / "snapshots" / "abc"


@pytest.mark.parametrize(
    ("mixed_precision", "facts", "expected"),
    [
        ("auto", machine(has_cuda=True, has_bf16=True), torch.bfloat16),
        ("auto", machine(has_cuda=True), torch.float16),
        ("auto", machine(seconds=(1.0, 0.5)), torch.bfloat16),
        ("auto", machine(seconds=(1.0, 1.0)), torch.float32),
        ("auto", machine(seconds=(1.0, 0.95)), torch.float32),
        ("auto", machine(seconds=(1.0, 1.6)), torch.float32),
        ("none", machine(has_cuda=True, has_bf16=True), torch.float32),
        ("none", machine(seconds=(1.0, 0.1)), torch.float32),
        ("bf16", machine(seconds=(1.0, 9.0)), torch.bfloat16),
        ("fp16", machine(has_cuda=True), torch.float16),
    ],
)
def test_dtype_is_what_the_machine_is_fast_in(mixed_precision: str, facts: DtypeSupport, expected: torch.dtype) -> None:
    assert choose_dtype(mixed_precision, facts) == expected


def test_a_dtype_the_machine_lacks_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="mixed_precision fp16 needs a CUDA device"):
        choose_dtype("fp16", machine())
    with pytest.raises(InvalidConfig, match="mixed_precision bf16 is not supported by this CUDA device"):
        choose_dtype("bf16", machine(has_cuda=True))


def test_the_probe_measures_both() -> None:
    assert all(0 < seconds < 5 for seconds in measure_gemm(size=64, repeats=2))


def test_model_and_tokenizer_are_loaded(model_path: Path, make_config: MakeConfig) -> None:
    assert load_model(model_path, make_config()).dtype == torch.float32
    assert load_model(model_path, make_config(mixed_precision="bf16")).dtype == torch.bfloat16
    full = make_config(mixed_precision="bf16", use_lora=False)
    assert load_model(model_path, full).dtype == torch.float32
    assert load_tokenizer(model_path).pad_token == "<|endoftext|>"


def test_a_tokenizer_without_pad_token_pads_with_its_end_and_grows_by_none(model_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_path)
    size = len(tokenizer)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<|endoftext|>"
    assert len(load_tokenizer(tmp_path)) == size


@pytest.mark.skipif(torch.cuda.is_available(), reason="QLoRA works on CUDA")
def test_qlora_without_cuda_is_refused(model_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(InvalidConfig, match="use_qlora needs a CUDA device"):
        load_model(model_path, make_config(use_qlora=True))


def test_qlora_without_its_package_is_refused(
    model_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.models.loading.inspect_hardware", lambda: Hardware(1, 8, has_bitsandbytes=False))
    with pytest.raises(InvalidConfig, match=r"use_qlora needs the package bitsandbytes; install it with .*\[cuda\]"):
        load_model(model_path, make_config(use_qlora=True), torch.bfloat16)


@pytest.mark.parametrize("layout", ["documents", "trl"])
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"gradient_checkpointing": True}], ids=str)
def test_qlora_learns_over_four_bits(
    open_session: Callable[..., TrainingSession], monkeypatch: pytest.MonkeyPatch, layout: str, fields: dict[str, Any]
) -> None:
    """As on CUDA, by bitsandbytes' own operations on a CPU, where Tuneyard lets nobody do it."""
    modules = pytest.importorskip("bitsandbytes.nn.modules", reason="part of the extra `cuda`")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)  # a kernel that has no backward pass
    monkeypatch.setattr("sft.models.loading._build_quantization", lambda dtype: quantization)
    monkeypatch.setattr("sft.training.session.choose_layout", lambda model, *options: layout)
    session = open_session(use_qlora=True, num_epochs=4.0, learning_rate=5e-3, batch_size=3, **fields)
    assert sum(isinstance(module, modules.Linear4bit) for module in session.trainer.model.modules()) == 2 * 7
    before = session.evaluate()["eval_loss"]
    session.train()
    assert session.evaluate()["eval_loss"] < 0.9 * before


def test_only_whole_safetensors_are_read(model_path: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"lacks 1 of the model's weights, model.norm.weight for one"):
        load_model(folder, make_config())
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match="has pickled weights"):
        load_model(folder, make_config())


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"num_hidden_layers": 1, "layer_types": None}, "9 weights"),
        ({"attention_bias": False}, "8 weights"),
        ({}, None),
    ],
)
def test_weights_that_the_configuration_has_no_place_for_are_told(
    tmp_path: Path, make_config: Callable[..., SFTConfig], change: dict[str, Any], names: str | None
) -> None:
    folder = save_tiny_model("llama", tmp_path / "model")
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "attention_bias" in change:
        with quiet_transformers():
            LlamaForCausalLM(LlamaConfig(**content | {"attention_bias": True})).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(content | change), encoding="utf-8")
    told = list_unread_weights(load_model(folder, make_config()))
    assert [sentence[:9] for sentence in told] == ([names] if names else [])
