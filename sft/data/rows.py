"""Rows with their numbers; one that can't be read does not fail its file."""

import json
from typing import Any, NamedTuple

from sft.data.fields import parse_json
from sft.data.file_content import explain_bytes
from sft.errors import InvalidDataset

Row = dict[str, Any]


class BrokenRow(NamedTuple):
    """A row that can't be read: its text in the file, and the reason."""

    text: str
    reason: str


NumberedRow = tuple[int, Row | BrokenRow]  # the number counts from 1: the line of a JSONL file, else the record


def shorten(value: Any) -> str:
    """`repr`, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def check_text(text: str) -> None:
    """Raise InvalidDataset for half of a surrogate pair, which JSON can hold and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidDataset(f"has half of a surrogate pair, {text[error.start]!r}, which is not text") from error


def read_line(line: bytes) -> Row | BrokenRow:
    """The JSON object in a line."""
    shown = line.decode("utf-8", "replace")
    try:
        return check_object(parse_json(line.decode("utf-8")), shown)
    except UnicodeDecodeError as error:
        return BrokenRow(shown, explain_bytes(error))
    except json.JSONDecodeError as error:
        return BrokenRow(shown, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BrokenRow(shown, f"not JSON: {error}")


def drop_nulls(value: Any) -> Any:
    """Remove keys whose value is null, at any depth; a null in a list stays."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list) else value


def check_object(row: Any, text: str | None = None) -> Row | BrokenRow:
    """The row if it is an object; `text` is how it is shown otherwise."""
    if isinstance(row, dict):
        return row
    return BrokenRow(repr(row) if text is None else text, f"must be an object, got {shorten(row)}")
