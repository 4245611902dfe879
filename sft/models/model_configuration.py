"""Checks a model's config.json before any library uses it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.errors import ModelUnusable

MOST_PARTS = 4096  # layers or experts; published models have at most 126 layers and 2,048 experts
# Matches `num_hidden_layers`, `n_layer`, `num_local_experts`, `depth` …, but not the size of an expert.
_COUNT = re.compile(r"(.*_)?(layers?|experts?|depths?|num_blocks)(_per_(stage|stack|group))?")
_IMPLEMENTATION = "implementation"  # as in `_attn_implementation`: a name, or a repository on the Hub with code to run

Named = tuple[str, Any]


def check_configuration(folder: Path, subject: str) -> None:
    """Refuse a config.json that has more layers or experts than any model or names code on the Hub.

    Too many layers would be built one by one without end. A file that can't be read is refused by its reader.

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
    """Yield every value with the name of its field, or of the field that contains it."""
    left: list[Named] = [("", content)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(name if name.endswith(_IMPLEMENTATION) else str(key), item) for key, item in value.items()]
        elif isinstance(value, list):
            left += [(name, item) for item in value]
        else:
            yield name, value
