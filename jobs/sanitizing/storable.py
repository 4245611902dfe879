"""Finds text that PostgreSQL can't store: NUL characters and lone surrogates, which JSON can contain."""

from typing import Any


def find_unstorable_text(value: Any, path: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The path to the first such text in plain JSON values; None if there is none.

    A key that can't be stored is escaped in the path.
    """
    if isinstance(value, str):
        return None if is_storable(value) else path
    if isinstance(value, dict):
        for key, item in value.items():
            if not is_storable(str(key)):
                return (*path, ascii(key))
            if found := find_unstorable_text(item, (*path, str(key))):
                return found
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if found := find_unstorable_text(item, (*path, str(index))):
                return found
    return None


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can store this text."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
