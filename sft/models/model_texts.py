"""The text files of a model or an adapter: none is read that is longer than any real one."""

import json
from pathlib import Path
from typing import Any

from sft.errors import ModelUnusable
from sft.files.places import is_special

MB = 2**20
TEMPLATES = "additional_chat_templates"  # the one folder that tokenizers look into
# Above the largest published ones: Gemma's tokenizer.json has 33 MB, the index of a model of 700 shards 10 MB.
LIMITS_BYTES = {
    "config.json": 16 * MB,
    "adapter_config.json": 16 * MB,
    "generation_config.json": MB,
    "model.safetensors.index.json": 64 * MB,
    "tokenizer.json": 256 * MB,
    "tokenizer_config.json": 32 * MB,
    "special_tokens_map.json": 32 * MB,
    "added_tokens.json": 32 * MB,
    "vocab.json": 64 * MB,
    "chat_template.json": MB,
    "processor_config.json": MB,
    "preprocessor_config.json": MB,
    "*.jinja": MB,
    "*.txt": 64 * MB,
    "*.model": 64 * MB,
}

# What `tokenizer_class` names where the class has no special tokens of its own: what its files do not name, it lacks.
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


def check_texts(folder: Path, subject: str) -> None:
    """Refuse text files that would take all memory of whatever reads them, and what is not a file: see `is_special`.

    Raises:
        ModelUnusable: naming the file, its size and the limit.
    """
    for path in (*folder.glob("*"), *folder.glob(f"{TEMPLATES}/*")):
        if is_special(path):
            raise ModelUnusable(f"{subject} can't be read: {path.name} is a pipe, a socket or a device; remove it")
    for pattern, limit in LIMITS_BYTES.items():
        for path in sorted(folder.glob(pattern)):
            if not path.is_file():
                continue
            if (size := path.stat().st_size) > limit:
                raise ModelUnusable(
                    f"{subject} can't be read: {path.name} has {size} bytes, and no more than {limit} are read; copy "
                    "or download it again"
                )


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
