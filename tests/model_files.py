"""A base model's files written by hand, for tests that need no model that computes anything."""

import json
import struct
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 512,
}


def write_model(folder: Path, shards: int = 1, template: bool = True, numbers: int = 1000, **config: Any) -> Path:
    """Write configuration, tokenizer and weights of `numbers` numbers in each shard; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text('{"added_tokens": [{"content": "<|im_start|>"}, {"content": "<|im_end|>"}]}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"} if template else {}))
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    for number, name in enumerate(names if shards > 1 else ["model.safetensors"]):
        write_weights(folder / name, f"layer{number}.weight", numbers)
    if shards > 1:
        index = {"weight_map": {f"layer{number}.weight": name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_weights(path: Path, name: str, numbers: int) -> None:
    """A safetensors file with one tensor of bfloat16 numbers."""
    header = json.dumps({name: {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(number % 251 for number in range(2 * numbers)))


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
