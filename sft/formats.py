"""Rows of a data file as conversations or plain text: alpaca, chat and completion datasets."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sft.errors import InvalidDataset

Row = dict[str, Any]
Message = dict[str, str]

CHAT_COLUMNS = ("messages", "conversations")
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}


class Conversation(NamedTuple):
    """Messages of `role` and `content`; the assistant's turns from `supervised_from` on are learned."""

    messages: list[Message]
    supervised_from: int = 0


class PlainText(NamedTuple):
    """Text that no template touches; `completion` is learned, `prompt` is only read."""

    prompt: str
    completion: str


def read_rows(path: Path) -> list[Row]:
    """The rows of a `.json` (one list), `.jsonl`, `.parquet` or `.csv` file, in order.

    Raises:
        InvalidDataset: the file is missing, of another kind, empty, or malformed (naming the line).
    """
    readers: dict[str, Callable[[Path], list[Any]]] = {
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise InvalidDataset(f"{path.name} must be one of {', '.join(readers)}, got {path.suffix or 'no suffix'}")
    if not path.is_file():
        raise InvalidDataset(f"{path} is not a file")
    try:
        rows = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{path.name} must be UTF-8: {error}") from error
    if not rows:
        raise InvalidDataset(f"{path.name} has no rows")
    return rows


def detect_format(row: Row) -> str:
    """`alpaca`, `chat` or `completion`, by the row's columns. Raises InvalidDataset when none fits."""
    if any(column in row for column in CHAT_COLUMNS):
        return "chat"
    if "instruction" in row:
        return "alpaca"
    if "text" in row or {"prompt", "completion"} <= row.keys():
        return "completion"
    raise InvalidDataset(
        "dataset_format auto knows alpaca (instruction, output), chat (messages or conversations) and completion "
        f"(text, or prompt and completion); columns are {_list_columns(row)}"
    )


def read_row(row: Row, number: int, dataset_format: str, text_field: str | None = None) -> Conversation | PlainText:
    """One row, `number` (from 1) naming it in errors. `text_field` is the column with a completion's whole text.

    Raises:
        InvalidDataset: a column is missing or holds the wrong kind of value.
    """
    try:
        if dataset_format == "auto":
            dataset_format = "completion" if text_field in row else detect_format(row)
        match dataset_format:
            case "alpaca":
                return _read_alpaca(row)
            case "chat":
                return _read_chat(row)
            case "completion":
                return _read_completion(row, text_field)
    except InvalidDataset as error:
        raise InvalidDataset(f"row {number}: {error}") from error
    raise InvalidDataset(f"dataset_format must be alpaca, chat, completion or auto, got {dataset_format!r}")


def _read_alpaca(row: Row) -> Conversation:
    messages = []
    if system := _read_text(row, "system", "alpaca", required=False):
        messages.append({"role": "system", "content": system})
    history = row.get("history")
    for pair in [] if history is None else history:
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(turn, str) for turn in pair)):
            raise InvalidDataset(f"history must hold pairs of question and answer, got {_shorten(pair)}")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    parts = [_read_text(row, "instruction", "alpaca"), _read_text(row, "input", "alpaca", required=False)]
    messages.append({"role": "user", "content": "\n".join(part for part in parts if part)})
    messages.append({"role": "assistant", "content": _read_text(row, "output", "alpaca")})
    return Conversation(messages)


def _read_chat(row: Row) -> Conversation:
    column = next((name for name in CHAT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise InvalidDataset(f"chat needs a column messages or conversations; columns are {_list_columns(row)}")
    messages = _read_messages(row[column], column)
    if (system := _read_text(row, "system", "chat", required=False)) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Conversation(messages)


def _read_completion(row: Row, text_field: str | None) -> Conversation | PlainText:
    if text_field is None and "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            messages = _read_messages(prompt, "prompt")
            return Conversation(messages + _read_messages(completion, "completion"), supervised_from=len(messages))
        return PlainText(_read_text(row, "prompt", "completion"), _read_text(row, "completion", "completion"))
    return PlainText("", _read_text(row, text_field or "text", "completion"))


def _read_messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise InvalidDataset(f"{column} must be a list of messages, got {_shorten(value)}")
    return [_read_message(message, f"{column}[{index}]") for index, message in enumerate(value)]


def _read_message(message: Any, where: str) -> Message:
    """`role` and `content` (OpenAI) or `from` and `value` (ShareGPT); a list of text parts is joined."""
    if not isinstance(message, dict):
        raise InvalidDataset(f"{where} must be a message with role and content, got {_shorten(message)}")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if role not in ROLES:
        raise InvalidDataset(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise InvalidDataset(f"{where} must have text as its content, got {_shorten(content)}")
    return {"role": ROLES[role], "content": content}


def _read_text(row: Row, column: str, dataset_format: str, required: bool = True) -> str:
    value = row.get(column)
    if value is None and not required:
        return ""
    if column not in row:
        raise InvalidDataset(f"{dataset_format} needs a column {column}; columns are {_list_columns(row)}")
    if not isinstance(value, str):
        raise InvalidDataset(f"{column} must be text, got {_shorten(value)}")
    return value


def _read_json(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # one object a line under the wrong suffix
            return _read_jsonl(path)
        raise InvalidDataset(f"{path.name} line {error.lineno}: {error.msg}") from error
    if not isinstance(rows, list):
        raise InvalidDataset(f"{path.name} must hold a list of rows, got {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InvalidDataset(f"{path.name} row {number} must be an object, got {_shorten(row)}")
    return rows


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidDataset(f"{path.name} line {number}: {error.msg}") from error
            if not isinstance(row, dict):
                raise InvalidDataset(f"{path.name} line {number} must be an object, got {_shorten(row)}")
            rows.append(row)
    return rows


def _read_csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        rows = []
        try:
            for row in reader:
                if None in row or None in row.values():
                    expected = len(reader.fieldnames or [])
                    raise InvalidDataset(f"{path.name} line {reader.line_num} must have {expected} cells")
                rows.append(row)
        except csv.Error as error:
            raise InvalidDataset(f"{path.name} line {reader.line_num}: {error}") from error
    return rows


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except pyarrow.ArrowInvalid as error:
        raise InvalidDataset(f"{path.name} is not a Parquet file: {error}") from error


def _list_columns(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
