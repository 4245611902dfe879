"""Rows as conversations or plain text: alpaca, chat and completion datasets."""

from typing import NamedTuple

from sft.data_files import Row, shorten
from sft.errors import InvalidDataset
from sft.messages import Message, Tool, read_json_cell, read_messages, read_tools

CHAT_COLUMNS = ("messages", "conversations")


class Conversation(NamedTuple):
    """Messages of `role` and `content`; the assistant's turns from `supervised_from` on are learned."""

    messages: list[Message]
    supervised_from: int = 0
    tools: list[Tool] | None = None  # functions the assistant may call


class PlainText(NamedTuple):
    """Text that no template touches; `completion` is learned, `prompt` is only read."""

    prompt: str
    completion: str


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


def read_row(row: Row, dataset_format: str, text_field: str | None = None) -> Conversation | PlainText:
    """One row. `text_field` is the column with a completion's whole text.

    Raises:
        InvalidDataset: a column is missing or holds the wrong kind of value.
    """
    if dataset_format == "auto":
        dataset_format = "completion" if text_field in row else detect_format(row)
    match dataset_format:
        case "alpaca":
            return _read_alpaca(row)
        case "chat":
            return _read_chat(row)
        case "completion":
            return _read_completion(row, text_field)
    raise InvalidDataset(f"dataset_format must be alpaca, chat, completion or auto, got {dataset_format!r}")


def _read_alpaca(row: Row) -> Conversation:
    messages: list[Message] = []
    if system := _read_text(row, "system", "alpaca", required=False):
        messages.append({"role": "system", "content": system})
    history = read_json_cell(row.get("history") or [], "history")
    if not isinstance(history, list | tuple):
        raise InvalidDataset(f"history must be a list of pairs of question and answer, got {shorten(history)}")
    for pair in history:
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(turn, str) for turn in pair)):
            raise InvalidDataset(f"history must hold pairs of question and answer, got {shorten(pair)}")
        messages.append({"role": "user", "content": pair[0]})
        messages.append({"role": "assistant", "content": pair[1]})
    parts = [_read_text(row, "instruction", "alpaca"), _read_text(row, "input", "alpaca", required=False)]
    messages.append({"role": "user", "content": "\n".join(part for part in parts if part)})
    messages.append({"role": "assistant", "content": _read_text(row, "output", "alpaca")})
    return Conversation(messages, tools=read_tools(row))


def _read_chat(row: Row) -> Conversation:
    column = next((name for name in CHAT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise InvalidDataset(f"chat needs a column messages or conversations; columns are {_list_columns(row)}")
    messages = read_messages(row[column], column)
    if (system := _read_text(row, "system", "chat", required=False)) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Conversation(messages, tools=read_tools(row))


def _read_completion(row: Row, text_field: str | None) -> Conversation | PlainText:
    if text_field is None and "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            messages = read_messages(prompt, "prompt")
            answer = read_messages(completion, "completion")
            return Conversation(messages + answer, supervised_from=len(messages), tools=read_tools(row))
        return PlainText(_read_text(row, "prompt", "completion"), _read_text(row, "completion", "completion"))
    return PlainText("", _read_text(row, text_field or "text", "completion"))


def _read_text(row: Row, column: str, dataset_format: str, required: bool = True) -> str:
    value = row.get(column)
    if value is None and not required:
        return ""
    if column not in row:
        raise InvalidDataset(f"{dataset_format} needs a column {column}; columns are {_list_columns(row)}")
    if not isinstance(value, str):
        raise InvalidDataset(f"{column} must be text, got {shorten(value)}")
    return value


def _list_columns(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
