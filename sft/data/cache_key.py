"""Makes the cache key of tokenized rows from everything that they depend on."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sft.chat.named_templates import TEMPLATES
from sft.config import SFTConfig
from sft.data.parts import list_parts
from sft.errors import InvalidDataset

FORMAT_VERSION = 4  # of the folder's files
CODE = ("data/*.py", "chat/*.py", "models/tokenizer_class.py")  # code that the tokens depend on; part of the key
LIBRARIES = ("jinja2", "tokenizers", "transformers")
TOKENIZER_FILES = (
    "*token*.json",
    "tekken.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "config.json",
    "additional_chat_templates/*.jinja",  # named templates beside the default one, for tools for instance
)


def digest(key_parts: dict[str, Any]) -> str:
    """A cache key of these parts, in hex."""
    return hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()


def describe_preparation(
    config: SFTConfig, model_path: Path, train_file: Path, eval_file: Path | None
) -> dict[str, Any]:
    """The parts of a cache key: everything that tokens and labels depend on."""
    return {
        "train": _describe_file(train_file),
        "eval": _describe_file(eval_file) if eval_file else None,
        **describe_tokens(config, model_path),
    }


def _describe_file(file: Path) -> list[str]:
    return [file.suffix.lower(), *map(hash_file, list_parts(file))]


def describe_tokens(config: SFTConfig, model_path: Path) -> dict[str, Any]:
    """The parts of a cache key besides the rows."""
    files = find_tokenizer_files(model_path)
    template = TEMPLATES.get(config.template_name)
    fields = {
        "dataset_format",
        "dataset_text_field",
        "max_samples",
        "validation_split",
        "max_seq_length",
        "excess_length_strategy",
        "invalid_rows",
        "train_on_prompt",
        "mask_history",
        "seed",
    }
    return {
        "format_version": FORMAT_VERSION,
        "code": _hash_code(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "tokenizer": {path.relative_to(model_path).as_posix(): hash_file(path) for path in files},
        "template": [config.template_name, *((template.jinja, *template) if template else ())],
        **config.model_dump(mode="json", include=fields),
    }


def _hash_code() -> dict[str, str]:
    library = Path(__file__).parents[1]
    files = sorted(file for pattern in CODE for file in library.glob(pattern))
    return {file.relative_to(library).as_posix(): hash_file(file) for file in files}


def find_tokenizer_files(model_path: Path) -> list[Path]:
    """The files in a model's folder that its tokenizer and chat template may be read from."""
    return sorted({path for pattern in TOKENIZER_FILES for path in model_path.glob(pattern) if path.is_file()})


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises InvalidDataset when there is no such file."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InvalidDataset(f"{path} is not a file") from error
