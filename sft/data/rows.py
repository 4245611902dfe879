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


def read_line(line: bytes) -> Row | BrokenRow:
    """The JSON object in a line."""
    shown = line.decode("utf-8", "replace")
    try:
        return _check_object(parse_json(line.decode("utf-8")), shown)
    except UnicodeDecodeError as error:
        return BrokenRow(shown, explain_bytes(error))
    except json.JSONDecodeError as error:
        return BrokenRow(shown, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BrokenRow(shown, f"not JSON: {error}")


def read_list(content: bytes, name: str) -> list[NumberedRow]:
    """The rows of a JSON list, or of one object a line; none if there is nothing.

    Raises:
        InvalidDataset: the content is neither.
    """
    if not content.strip():
        return []
    try:
        rows = parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{name} is {explain_bytes(error)}") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # one object a line under the wrong suffix
            return [(number, read_line(line)) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
        raise InvalidDataset(f"{name} line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, very deep nesting
        raise InvalidDataset(f"{name} can't be read as JSON: {error}") from error
    if isinstance(rows, dict):
        keys = shorten(list(rows))
        raise InvalidDataset(f"{name} must hold a list of rows, or an object a line, got one object with {keys}")
    if not isinstance(rows, list):
        raise InvalidDataset(f"{name} must hold a list of rows, got {type(rows).__name__}")
    return [(number, _check_object(row, repr(row))) for number, row in enumerate(rows, 1)]


def drop_nulls(value: Any) -> Any:
    """Remove keys whose value is null, at any depth; a null in a list stays."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list) else value


def _check_object(row: Any, text: str) -> Row | BrokenRow:
    return row if isinstance(row, dict) else BrokenRow(text, f"must be an object, got {shorten(row)}")
