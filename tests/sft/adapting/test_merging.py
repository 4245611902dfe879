"""A merge layer by layer against PEFT's `merge_and_unload` in memory: the same numbers, in a fraction of the memory."""

import json
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from sft.adapting.adaptation import plan_adaptation
from sft.adapting.merging import Merge, WholeMerge, plan_merge
from sft.config import SFTConfig
from sft.errors import MergeFailed
from sft.models.loading import quiet_transformers
from sft.models.model_class import find_model_class
from sft.models.model_settings import read_settings
from tests.sweep.tiny import build_model
from tests.tiny_models import build_tokenizer, save_tiny_model

CONFIG = {"base_model": "tiny", "dataset_name": "rows", "dataset_format": "alpaca", "lora_r": 2, "lora_dropout": 0.0}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars and deprecation warnings of transformers."""
    with quiet_transformers():
        yield


def load_base(path: Path) -> Any:
    settings = read_settings(path, "base_model tiny")
    return find_model_class(settings, path).from_pretrained(
        path, config=settings, dtype=torch.float32, generation_config=GenerationConfig()
    )


def save_adapter(path: Path, folder: Path, settings: LoraConfig) -> Path:
    """An adapter of random numbers, as one that has been trained."""
    adapted = get_peft_model(load_base(path), settings)
    torch.manual_seed(1)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data.normal_(std=0.1)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def merge_with_peft(path: Path, adapter: Path, folder: Path) -> Path:
    merged = PeftModel.from_pretrained(load_base(path), str(adapter), torch_device="cpu").merge_and_unload()
    merged.to(read_settings(path, "base_model tiny").dtype).save_pretrained(folder)
    return folder


def merge_by_layer(path: Path, adapter: Path, folder: Path, **options: Any) -> Path:
    folder.mkdir()
    Merge(path, adapter, "base_model tiny").write(folder, **options)
    return folder


def check_same(found: Path, expected: Path) -> None:
    """The same names, bits and configuration."""
    sides = []
    for folder in (found, expected):
        files = sorted(folder.glob("*.safetensors"))
        sides.append({name: tensor for file in files for name, tensor in load_file(file).items()})
    assert sides[0].keys() == sides[1].keys()
    for name, tensor in sides[1].items():
        assert sides[0][name].dtype == tensor.dtype, name
        assert torch.equal(sides[0][name], tensor), name
    settings = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (found, expected)]
    assert settings[0] == settings[1]


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.* have invalid shape")  # the biases of lora_bias
@pytest.mark.parametrize(
    ("kind", "dtype", "settings"),
    [
        ("llama", "fp32", {"target_modules": ["q_proj", "down_proj"]}),
        ("llama", "bf16", {"target_modules": "all-linear", "use_rslora": True}),
        ("llama", "fp16", {"target_modules": "all-linear", "use_dora": True}),
        (
            "gemma",
            "fp32",
            {"target_modules": "all-linear", "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"up_proj": 5}},
        ),
        ("gemma", "bf16", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("gemma", "fp32", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("gemma", "fp32", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("llama", "bf16", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "input_layernorm"]}),
        ("gemma", "fp32", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
        ("gpt2", "fp32", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gpt2", "fp32", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
        ("qwen2", "fp32", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
        ("qwen2", "fp32", {"target_modules": ["q_proj"], "lora_bias": True}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_every_kind_of_adapter_is_merged_as_peft_does(
    kind: str, dtype: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = save_tiny_model(kind, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype]).save_pretrained(path)
    adapter = save_adapter(path, tmp_path / "adapter", LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    found = merge_by_layer(path, adapter, tmp_path / "merged")
    check_same(found, merge_with_peft(path, adapter, tmp_path / "expected"))


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        *((kind, None) for kind in ("llama4_text", "gemma3", "llava", "qwen3_next", "falcon_h1", "gpt_oss", "bloom")),
        *((kind, None) for kind in ("bart", "mixtral", "deepseek_v3")),
        *((kind, ["all-linear", "experts"]) for kind in ("qwen2_moe", "granitemoe")),
    ],
)
def test_every_architecture_is_merged_as_peft_does(kind: str, targets: list[str] | None, tmp_path: Path) -> None:
    """Fused and stacked experts, transposed layers, images, state spaces, an encoder: in bf16, as published."""
    end = build_tokenizer().eos_token_id
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    path = tmp_path / "base"
    build_model(kind, len(build_tokenizer()) + 16, ids).to(torch.bfloat16).save_pretrained(path)
    config = SFTConfig.from_dict(CONFIG | {"lora_target_modules": targets})
    settings = plan_adaptation(load_base(path), config).settings
    assert settings is not None
    adapter = save_adapter(path, tmp_path / "adapter", settings)
    found = merge_by_layer(path, adapter, tmp_path / "merged")
    check_same(found, merge_with_peft(path, adapter, tmp_path / "expected"))


def test_a_large_model_is_written_in_files_with_an_index(tmp_path: Path) -> None:
    path = save_tiny_model("llama", tmp_path / "base")
    adapter = save_adapter(path, tmp_path / "adapter", LoraConfig(target_modules="all-linear"))
    found = merge_by_layer(path, adapter, tmp_path / "merged", shard_bytes=100_000)
    check_same(found, merge_with_peft(path, adapter, tmp_path / "expected"))
    files = sorted(found.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(file.stat().st_size < 101_000 + 1000 for file in files)
    _, loading = AutoModelForCausalLM.from_pretrained(found, output_loading_info=True)
    assert not any(loading.values())


PEAK = """
import json, resource, sys
from pathlib import Path
import torch
from peft import PeftModel
from sft.adapting.merging import Merge
torch.set_num_threads(1)
base, adapter, folder = map(Path, sys.argv[1:])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
merge = Merge(base, adapter, "base_model large")
before = peak()
merge.write(folder, shard_bytes=60_000_000)
print(json.dumps({"grown": peak() - before, "needed": merge.needed_bytes, "size": merge.size}))
"""


def test_a_merge_takes_the_memory_of_a_layer_and_not_of_the_model(tmp_path: Path) -> None:
    """The process that merges 270 MB, 540 MB in fp32, grows by less than a shard of 60 MB and the layer's copies."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": 512}
    path, folder = tmp_path / "base", tmp_path / "merged"
    config = LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=8, dtype="bfloat16")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for weight in model.parameters():
        weight.data.fill_(0.5)
    model.save_pretrained(path, max_shard_size="60MB")
    del model
    adapter = tmp_path / "adapter"
    with torch.device("meta"):
        hollow = LlamaForCausalLM(config)
    adapted = get_peft_model(hollow, LoraConfig(r=4, target_modules="all-linear"), low_cpu_mem_usage=True)
    state = {name: torch.ones(tensor.shape) for name, tensor in adapted.named_parameters() if "lora_" in name}
    adapted.save_pretrained(str(adapter), state_dict=state, save_embedding_layers=False)
    folder.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(adapter), str(folder)], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["size"] > 260_000_000
    assert found["grown"] < found["needed"] + 60_000_000 < 0.3 * 2 * found["size"]
    merged = load_file(folder / "model-00001-of-00005.safetensors")
    assert merged["model.layers.0.self_attn.q_proj.weight"][0, 0] == 0.5 + 4 * 8 / 4


def write_hollow(folder: Path, model: torch.nn.Module) -> int:
    """Write a model's files with their names, types and shapes and nothing but holes; return their bytes in all."""
    folder.mkdir()
    places: dict[str, str] = {}
    files: list[dict[str, Any]] = [{}]
    ends = [0]
    for name, weight in model.named_parameters():
        if ends[-1] + weight.nbytes > 5_000_000_000:
            files.append({})
            ends.append(0)
        offsets = [ends[-1], ends[-1] + weight.nbytes]
        files[-1][name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": offsets}
        ends[-1] = offsets[1]
        places[name] = f"model-{len(files)}.safetensors"
    for number, (header, size) in enumerate(zip(files, ends, strict=True), start=1):
        encoded = json.dumps(header).encode()
        with (folder / f"model-{number}.safetensors").open("wb") as stream:
            stream.write(len(encoded).to_bytes(8, "little") + encoded)
            stream.truncate(8 + len(encoded) + size)
    index = {"metadata": {"total_size": sum(ends)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(ends)


def test_a_merge_of_70_billion_weights_takes_less_than_a_shard_and_two_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the 282 GB of the model in fp32. Files with holes have its names, types and shapes."""
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256}
    config = LlamaConfig(**sizes, num_attention_heads=64, num_key_value_heads=8, dtype="bfloat16")
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    size = write_hollow(tmp_path / "base", model)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj", "down_proj"]), low_cpu_mem_usage=True)
    state = {name: torch.ones(tensor.shape) for name, tensor in adapted.named_parameters() if "lora_" in name}
    adapted.save_pretrained(str(tmp_path / "adapter"), state_dict=state, save_embedding_layers=False)
    room = namedtuple("Memory", "available")(5_000_000_000 + 2_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)
    merge = plan_merge(tmp_path / "base", tmp_path / "adapter", "base_model large")
    assert isinstance(merge, Merge)
    assert merge.size >= size > 140_000_000_000
    assert merge.needed_bytes == 4 * 4 * 8192 * 28672


def test_a_merge_in_memory_gives_the_same(tmp_path: Path) -> None:
    path = save_tiny_model("llama", tmp_path / "base")
    adapter = save_adapter(path, tmp_path / "adapter", LoraConfig(target_modules="all-linear"))
    WholeMerge(path, adapter, "base_model tiny", "it has to be").write(tmp_path / "merged")
    check_same(tmp_path / "merged", merge_by_layer(path, adapter, tmp_path / "expected"))


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "olora", "pissa"])
def test_an_adapter_that_changed_the_base_model_is_merged_into_the_changed_one(start: str, tmp_path: Path) -> None:
    path = save_tiny_model("llama", tmp_path / "base")
    settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=start)
    adapter = save_adapter(path, tmp_path / "adapter", settings)
    adapted = PeftModel.from_pretrained(load_base(path), str(adapter), torch_device="cpu")
    (tmp_path / "merged").mkdir()
    plan_merge(path, adapter, "base_model tiny").write(tmp_path / "merged")
    ids = torch.arange(1, 9)[None]
    expected, found = (model.eval()(ids).logits for model in (adapted, load_base(tmp_path / "merged")))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_too_little_memory_is_told_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_tiny_model("llama", tmp_path / "base")
    adapter = save_adapter(path, tmp_path / "adapter", LoraConfig(target_modules="all-linear"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(100_000))
    with pytest.raises(MergeFailed, match=r"needs 0.0 GB of main memory and 0.0 GB are free; merge the adapter on an"):
        plan_merge(path, adapter, "base_model tiny")
