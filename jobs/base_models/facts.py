"""What the files of a base model say about it, read without torch and without its weights."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from jobs.preflight.file_checks import LARGEST_JSON, read_lock
from jobs.preflight.templates import has_chat_template
from sft.errors import ModelUnusable
from sft.files.stamps import stamp_folder
from sft.models.model_texts import check_texts, read_object
from sft.models.weights import find_weight_damage, list_weight_files, measure_header, read_shapes

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
LARGEST_HEADERS = 64 * 2**20  # of all files; larger ones are not counted


class ModelFacts(NamedTuple):
    """Facts of a model; None: not known."""

    architecture: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    positions: int | None = None
    has_chat_template: bool = False


def read_facts(folder: Path) -> ModelFacts:
    """Read the facts of the model in a folder; cached until a file changes."""
    try:
        stamp = stamp_folder(folder)
        has_template = has_chat_template(folder)
        with read_lock():
            return _read(folder, stamp)._replace(has_chat_template=has_template)
    except (OSError, ModelUnusable):  # gone meanwhile, damaged, or others read long files; the check says what is wrong
        return ModelFacts()


@functools.lru_cache(maxsize=256)
def _read(folder: Path, _stamp: str) -> ModelFacts:
    check_texts(folder, "")
    config = read_object(folder / "config.json")
    parameters, dtype = _count(folder)
    return ModelFacts(_name_architecture(config), parameters, dtype, _find_positions(config))


def _name_architecture(config: dict[str, Any]) -> str | None:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else config.get("model_type")
    return first if isinstance(first, str) else None


def _find_positions(config: dict[str, Any]) -> int | None:
    """The longest sequence, of the model or of its language part."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for name in POSITIONS:
            if type(found := part.get(name)) is int:
                return found
    return None


def _count(folder: Path) -> tuple[int | None, str | None]:
    """The numbers in the weight files, and the dtype of most of them."""
    try:
        files = list_weight_files(folder, "", LARGEST_JSON)
        if not files or any(find_weight_damage(file, LARGEST_JSON) for file in files):
            return None, None
        if sum(map(measure_header, files)) > LARGEST_HEADERS or max(map(measure_header, files)) > LARGEST_JSON:
            return None, None
        counts = Counter[str]()
        for file in files:
            for dtype, shape in read_shapes(file).values():
                counts[dtype] += functools.reduce(lambda product, length: product * length, shape, 1)
    except (OSError, ValueError, ModelUnusable):
        return None, None
    return sum(counts.values()), max(counts, key=lambda dtype: counts[dtype], default=None)
