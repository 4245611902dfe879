"""The file of `tuneyard generate`: JSON lines, or a JSON list, of prompts, messages or rows of training data."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tuneyard_cli.problems import UsageProblem
from tuneyard_wire.dataset_reference import find_file_suffix

OWN_FIELDS = ("answer", "finish_reason", "tool_calls")  # what is added to a line
REFERENCE = "reference"  # and to one that ends with an answer
CALL = "function_call"  # ShareGPT's role of a call as JSON, and OpenAI's earlier field of one
ROLES = {  # of training data, by OpenAI's
    **{"human": "user", "gpt": "assistant", "model": "assistant", CALL: "assistant"},
    **{"function": "tool", "ipython": "tool", "observation": "tool"},
}
NAMES = {"from": "role", "value": "content"}  # likewise
FOR_TRAINING = ("weight", "loss", "train")  # fields of messages that jobs read, and the service does not take
FORMS = (
    "must be a JSON object with a text `prompt` or a list of objects `messages`, not empty, or a row of training data: "
    "`conversations`, `instruction` and `output`, or `prompt` and `completion`"
)

Row = dict[str, Any]
Message = dict[str, Any]


class Question(NamedTuple):
    """What a line asks.

    Attributes:
        place: "line 1", or "row 1" of a list.
        row: its own fields.
        asked: messages of a chat, or text that is continued.
        reference: the answer that the line has itself, which is not asked, as the field `reference`; empty without one.
        tools: functions that may be called in a chat; None without any.
    """

    place: str
    row: Row
    asked: list[Message] | str
    reference: dict[str, Any]
    tools: list[Any] | None


def read_questions(file: Path) -> list[Question]:
    """Read the lines of a file, or the list in it. Raises UsageProblem, naming the first one that asks nothing."""
    questions = []
    if (suffix := find_file_suffix(file.name)) not in (None, ".json", ".jsonl"):
        raise UsageProblem(f"--file {file} must have JSON lines or a JSON list, and ends in {suffix}; convert it first")
    text = _read_text(file)
    for place, row in _read_list(file, text) if text.lstrip().startswith("[") else _read_lines(file, text):
        named = f"--file {file}: {place}"
        if not isinstance(row, dict) or not (asked := _find_asked(row)):
            raise UsageProblem(f"{named} {FORMS}")
        asked, reference = _split(row, asked)
        if not asked:
            raise UsageProblem(f"{named} has nothing before its answer")
        if kept := [name for name in (*OWN_FIELDS, *reference) if name in row]:
            raise UsageProblem(f"{named} has a field {kept[0]} already; give it another name")
        questions.append(Question(place, row, asked, reference, _read_tools(row, named)))
    if not questions:
        raise UsageProblem(f"--file {file} has no lines")
    return questions


def _read_lines(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parse(line, f"--file {file}: line {number}")


def _read_list(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(_parse(text, f"--file {file}"), 1):
        yield f"row {number}", row


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_make_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise UsageProblem(f"{place} is nested too deeply") from None
    except ValueError as error:
        raise UsageProblem(f"{place} is not JSON: {error}") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageProblem(f"--file {file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageProblem(
            f"--file {file} is not UTF-8 at byte {error.start}; convert it with `iconv -f ENCODING -t UTF-8`"
        ) from error


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {max(names, key=names.count)!r:.80} more than once")
    return made


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _find_asked(row: Row) -> list[Message] | str | None:
    """The messages of a row, with its own answer, or its text; None for a row of another form.

    Of a row with several forms a job's choice counts: messages, then an instruction with its output, then a prompt.
    """
    chats = [row[name] for name in ("messages", "conversations") if row.get(name) is not None]
    if chats:
        return _begin_with_system(row, _read_messages(next(filter(None, chats), None)))
    prompt = row.get("prompt")
    if prompt is None or (row.get("instruction") is not None and row.get("output") is not None):
        return _read_alpaca(row)
    if isinstance(prompt, str):
        return prompt if row.get("tools") is None else None
    columns = [prompt] if row.get("completion") is None else [prompt, row["completion"]]  # of a chat, as TRL has it
    if not all(isinstance(column, list) and column for column in columns):
        return None
    return _read_messages([message for column in columns for message in column])


def _read_messages(value: Any) -> list[Message]:
    """Messages in OpenAI's form, calls and their results with ids; none for a value of another kind."""
    value = _read_cell(value)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return []
    messages = [_read_message(one) for one in value]
    number, waiting = 0, list[Any]()  # ids of calls whose results did not come yet
    for message in messages:
        if isinstance(calls := message.get("tool_calls"), list):
            message["tool_calls"] = [_read_call(call, number + place) for place, call in enumerate(calls)]
            waiting += [call["id"] for call in message["tool_calls"] if isinstance(call, dict)]
            number += len(calls)
        elif message.get("role") == "tool":
            found = message.setdefault("tool_call_id", waiting[0] if waiting else _make_id(number))
            waiting = [one for one in waiting if one != found]
    return messages


def _read_message(message: Message) -> Message:
    """A message without what is for training alone, or null, as tables fill the fields that a message lacks."""
    read = {name: value for name, value in message.items() if value is not None and name not in FOR_TRAINING}
    for name, ours in NAMES.items():
        if name in read and ours not in read:
            read[ours] = read.pop(name)
    role = read.get("role")
    given, earlier = read.pop("tool_calls", None), read.pop(CALL, None)
    calls = _read_cell(given or earlier)
    if role == CALL and not calls:
        calls = _read_cell(read.get("content"))
        if not isinstance(calls, dict | list):
            return read  # the service says that it has no such role
        del read["content"]
    if calls:
        read["tool_calls"] = [calls] if isinstance(calls, dict) else calls
    return {**read, "role": ROLES.get(role, role)} if isinstance(role, str) else read


def _read_call(call: Any, number: int) -> Any:
    """A call in OpenAI's form: training rows may have no ids, and arguments as an object."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments", function.get("parameters"))
    if not isinstance(arguments, str) or not arguments.strip():
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    made = {"name": function.get("name"), "arguments": arguments}
    return {"id": call.get("id") or _make_id(number), "type": "function", "function": made}


def _make_id(number: int) -> str:
    return f"call{number:05}"  # the nine characters that some templates ask for


def _read_cell(value: Any) -> Any:
    """The list or object that a text has as JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with suppress(UsageProblem):
            return _parse(value, "text")
    return value


def _read_tools(row: Row, named: str) -> list[Any] | None:
    """The functions of a row in OpenAI's form, which may be JSON text, or in its earlier field `functions`."""
    name = next((name for name in ("tools", "functions") if row.get(name)), "tools")
    tools = row.get(name)
    if isinstance(tools, str):
        tools = _parse(tools, f"{named}: {name}") if tools.strip() else None
    if tools and not isinstance(tools, list):
        raise UsageProblem(f"{named}: {name} must be a list of functions, or JSON text of one, got {tools!r:.80}")
    return [_read_tool(tool) for tool in tools] if tools else None


def _read_tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _read_alpaca(row: Row) -> list[Message] | None:
    """The messages that a job makes of an alpaca row."""
    texts = [row.get(name) or "" for name in ("instruction", "input", "output")]
    history = _read_cell(row.get("history") or [])
    is_history = isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)
    is_question = row.get("instruction") is not None and any(texts[:2])
    if not (is_question and is_history and all(isinstance(text, str) for text in texts)):
        return None
    turns = [text for pair in history for text in pair]
    turns += ["\n".join(text for text in texts[:2] if text), *filter(None, texts[2:])]
    roles = ("user", "assistant")
    return _begin_with_system(row, [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)])


def _begin_with_system(row: Row, messages: list[Message]) -> list[Message]:
    system = row.get("system")
    if not messages or not isinstance(system, str) or not system or messages[0].get("role") in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _split(row: Row, asked: list[Message] | str) -> tuple[list[Message] | str, dict[str, Any]]:
    """What is asked, and the answer that the row has itself."""
    if isinstance(asked, str):
        completion = row.get("completion")
        return asked, {REFERENCE: completion} if isinstance(completion, str) else {}
    if asked[-1].get("role") != "assistant":
        return asked, {}
    return asked[:-1], {REFERENCE: asked[-1].get("content")}
