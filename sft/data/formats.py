"""Reads rows of alpaca, chat and completion datasets as conversations or plain text."""

from collections.abc import Iterator
from typing import NamedTuple

from sft.data.fields import EMPTY, Fields, parse_json
from sft.data.messages import Message, Tool, read_json_cell, read_messages, read_tools
from sft.data.rows import Row, check_text, shorten
from sft.errors import InvalidDataset

CHAT_COLUMNS = ("messages", "conversations")


class Conversation(NamedTuple):
    """Messages of `role` and `content`; assistant turns from `supervised_from` on are supervised.

    `ignored` names fields of the row and its messages that have a value and are not used.
    """

    messages: list[Message]
    supervised_from: int = 0
    tools: list[Tool] | None = None  # functions the assistant may call
    read_only: frozenset[int] = frozenset()  # indices of turns with weight 0: not supervised
    ignored: frozenset[str] = frozenset()


class PlainText(NamedTuple):
    """Text rendered without a template; `completion` is supervised, `prompt` is not."""

    prompt: str
    completion: str
    ignored: frozenset[str] = frozenset()


def detect_format(row: Row) -> str:
    """`alpaca`, `chat` or `completion`, by the row's columns. Raises InvalidDataset when none fits."""
    columns = {column for column, value in row.items() if value is not None} or row.keys()
    if any(column in columns for column in CHAT_COLUMNS):
        return "chat"
    if "instruction" in columns:
        return "alpaca"
    if "text" in columns or {"prompt", "completion"} <= row.keys():
        return "completion"
    if "chosen" in row and "rejected" in row:
        raise InvalidDataset(
            "chosen and rejected are preference data and training is supervised; write the answers to learn as messages"
        )
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
    reader = {"alpaca": _read_alpaca, "chat": _read_chat, "completion": _read_completion}.get(dataset_format)
    if reader is None:
        raise InvalidDataset(f"dataset_format must be alpaca, chat, completion or auto, got {dataset_format!r}")
    columns, ignored = Fields(row), set[str]()
    read = reader(columns, ignored, text_field)
    for text in _list_texts(read):
        check_text(text)
    ignored.update(columns.list_ignored())
    if text_field is not None and not isinstance(read, PlainText):
        ignored.add(f"dataset_text_field {text_field!r:.60}")
    if isinstance(read, PlainText):
        return read._replace(ignored=frozenset(ignored)) if ignored else read
    places = [place for place, message in enumerate(read.messages) if "weight" in message]
    for place in places:
        del read.messages[place]["weight"]
    return read._replace(read_only=frozenset(places), ignored=frozenset(ignored)) if places or ignored else read


def _list_texts(read: Conversation | PlainText) -> Iterator[str]:
    """The texts that a template or a tokenizer is given; those of functions and arguments are checked as JSON."""
    if isinstance(read, PlainText):
        yield read.prompt
        yield read.completion
        return
    for message in read.messages:
        yield from (value for value in message.values() if isinstance(value, str))
        for call in message.get("tool_calls", ()):
            yield call["function"]["name"]
            yield call.get("id", "")


def _read_alpaca(row: Fields, ignored: set[str], _: str | None) -> Conversation:
    messages: list[Message] = []
    if system := _read_text(row, "system", "alpaca", required=False):
        messages.append({"role": "system", "content": system})
    history = read_json_cell(row.take("history") or [], "history")
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
    return Conversation(messages, tools=read_tools(row, ignored))


def _read_chat(row: Fields, ignored: set[str], _: str | None) -> Conversation:
    there = [name for name in CHAT_COLUMNS if row.values.get(name) is not None]
    column = next((name for name in there if row.values[name] not in EMPTY), there[0] if there else None)
    if column is None:
        raise InvalidDataset(f"chat needs a column messages or conversations; columns are {_list_columns(row.values)}")
    messages = read_messages(row.take(column), column, ignored)
    # A system message among the messages wins; the column then counts as ignored, unless it is equal.
    first = messages[0]
    if first["role"] != "system" or row.values.get("system") == first["content"]:
        system = _read_text(row, "system", "chat", required=False)
        if system and first["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
    return Conversation(messages, tools=read_tools(row, ignored))


def _read_completion(row: Fields, ignored: set[str], text_field: str | None) -> Conversation | PlainText:
    if text_field is None and "prompt" in row.values and "completion" in row.values:
        if str(row.values.get("label")).strip().lower() == "false":  # TRL's unpaired preferences, a CSV file's too
            raise InvalidDataset("label false calls this completion a bad one, which training would learn; take it out")
        if _holds_messages(row.values["prompt"]) and _holds_messages(row.values["completion"]):
            messages = read_messages(row.take("prompt"), "prompt", ignored)
            answer = read_messages(row.take("completion"), "completion", ignored)
            return Conversation(messages + answer, supervised_from=len(messages), tools=read_tools(row, ignored))
        return PlainText(_read_text(row, "prompt", "completion"), _read_text(row, "completion", "completion"))
    return PlainText("", _read_text(row, text_field or "text", "completion"))


def _holds_messages(value: object) -> bool:
    """Whether it is a list, or text of a JSON list, as in a CSV file."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            return False
        return isinstance(value, list) and all("role" in message or "from" in message for message in value)
    return isinstance(value, list)


def _read_text(row: Fields, column: str, dataset_format: str, required: bool = True) -> str:
    value = row.take(column)
    if value is None and not required:
        return ""
    if column not in row.values:
        raise InvalidDataset(f"{dataset_format} needs a column {column}; columns are {_list_columns(row.values)}")
    if not isinstance(value, str):
        raise InvalidDataset(f"{column} must be text, got {shorten(value)}")
    return value


def _list_columns(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
