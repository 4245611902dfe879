"""Tracks which fields of a row or message are read, so that ignored ones are reported; refuses duplicate keys."""

import json
from collections.abc import Iterator
from typing import Any

EMPTY: tuple[Any, ...] = (None, "", [], {})


class Fields:
    """The columns of a row or the keys of a message."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self._read: set[str] = set()

    def take(self, *names: str) -> Any:
        """The first of these that is not empty, else the first that is not null, else None. Marks it as read."""
        for is_wanted in (_holds_something, _is_there):
            for name in names:
                if name in self.values and is_wanted(self.values[name]):
                    self._read.add(name)
                    return self.values[name]
        return None

    def list_ignored(self, prefix: str = "") -> Iterator[str]:
        """Names of fields that have a value and were not read."""
        if self.values.keys() <= self._read:
            return
        for name, value in self.values.items():
            if name not in self._read and value not in EMPTY:
                yield f"{prefix}{name}"


def _holds_something(value: Any) -> bool:
    return value not in EMPTY


def _is_there(value: Any) -> bool:
    return value is not None


def parse_json(text: str) -> Any:
    """Parse a JSON text. Raises ValueError (JSONDecodeError for wrong syntax, or a duplicate key) or RecursionError."""
    return _DECODER.decode(text)


def parse_json_at(text: str, place: int) -> tuple[Any, int]:
    """`parse_json` of the value that begins at a place in a text; also returns the place of its end."""
    return _DECODER.raw_decode(text, place)


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice!r} more than once")
    return built


_DECODER = json.JSONDecoder(object_pairs_hook=_build_object)
