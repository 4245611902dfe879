"""Refuses text files of a model or an adapter that are larger than any real one."""

import json
from pathlib import Path
from typing import Any

from sft.errors import ModelUnusable
from sft.files.places import is_special

MB = 2**20
TEMPLATES = "additional_chat_templates"  # the only subfolder that tokenizers read
# Above the largest published ones: Gemma's tokenizer.json has 33 MB, the index of a model with 700 shards 10 MB.
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

# Tokenizer classes without special tokens of their own: they have only those that their files name.
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


def check_texts(folder: Path, subject: str) -> None:
    """Refuse text files that would use up the reader's memory, and special files (see `is_special`).

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
    """Read the object in a JSON file; empty if it is missing or can't be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
