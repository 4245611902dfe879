"""Parses JSON of data files and refuses duplicate keys, as one of the values would be lost."""

import json
from typing import Any


def parse_json(text: str) -> Any:
    """Parse a JSON text. Raises ValueError (JSONDecodeError for wrong syntax) or RecursionError."""
    return _DECODER.decode(text)


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice!r} more than once")
    return built


_DECODER = json.JSONDecoder(object_pairs_hook=_build_object)
