"""What a model's config.json asks for, looked at before any library believes it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.errors import ModelUnusable

MOST_PARTS = 4096  # layers or experts; the most that a published model has are 126 layers and 2,048 experts
# `num_hidden_layers`, `n_layer`, `num_local_experts`, `depth` …, but not the size of an expert.
_COUNT = re.compile(r"(.*_)?(layers?|experts?|depths?|num_blocks)(_per_(stage|stack|group))?")
_IMPLEMENTATION = "implementation"  # as in `_attn_implementation`: a name, or a repository on the Hub with code to run

Named = tuple[str, Any]


def check_configuration(folder: Path, subject: str) -> None:
    """Refuse a config.json with more layers or experts than any model has, which would be made one by one for ever, and
    one that names code on the Hub. A file that can't be read is left to who reads it.

    Raises:
        ModelUnusable: naming the field and the value.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    for name, value in _walk(content):
        if type(value) is int and value > MOST_PARTS and _COUNT.fullmatch(name):
            raise ModelUnusable(
                f"{subject} can't be read: {name} in config.json must be at most {MOST_PARTS}, got {value}; take the "
                "config.json that belongs to the weights"
            )
        if isinstance(value, str) and name.endswith(_IMPLEMENTATION) and ("/" in value or ":" in value):
            raise ModelUnusable(
                f"{subject} needs code of its own, which is never run: {name} in config.json is {value!r:.80}; take "
                "that field out"
            )


def _walk(content: Any) -> Iterator[Named]:
    """Every value with the name of its field, or of the field whose list or parts it is in."""
    left: list[Named] = [("", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(name if name.endswith(_IMPLEMENTATION) else str(key), item) for key, item in value.items()]
        elif isinstance(value, list):
            left += [(name, item) for item in value]
        else:
            yield name, value
