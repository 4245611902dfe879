"""Converts messages in OpenAI's or ShareGPT's format to the form that chat templates read."""

import json
from typing import Any

from sft.data.content_parts import join_parts
from sft.data.fields import EMPTY, Fields, parse_json
from sft.data.rows import shorten
from sft.errors import InvalidDataset

Message = dict[str, Any]  # role, content; optional tool_calls, tool_call_id, name, reasoning_content; `weight` 0
Tool = dict[str, Any]  # {"type": "function", "function": {"name": ..., ...}}

FUNCTION_CALL = "function_call"  # ShareGPT's role of an assistant's turn that is a call as JSON
REASONING = ("reasoning_content", "reasoning", "thinking")  # names that templates use for an assistant's reasoning
FLAGS = ("loss", "train")  # ms-swift's and Axolotl's names for a weight, true or false
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    FUNCTION_CALL: "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}


def read_messages(value: Any, column: str, ignored: set[str] | None = None) -> list[Message]:
    """Read a column's messages; a text cell (of a CSV file) may hold them as JSON.

    `ignored` collects the names of fields that have a value and are not used, as `messages[].name`. A turn whose
    `weight` is 0 keeps it: it is not supervised.

    Raises:
        InvalidDataset: naming the message and what is wrong with it.
    """
    value = read_json_cell(value, column, "[")
    if not isinstance(value, list) or not value:
        raise InvalidDataset(f"{column} must be a list of messages, got {shorten(value)}")
    left = set[str]() if ignored is None else ignored
    return [_read_message(message, f"{column}[{index}]", left) for index, message in enumerate(value)]


def read_tools(row: Fields, ignored: set[str] | None = None) -> list[Tool] | None:
    """Read a row's functions, a list or JSON text, in OpenAI's form; None without any.

    They are in the column `tools`, or in `functions`, OpenAI's earlier name.
    """
    column = "tools" if row.values.get("tools") not in EMPTY else "functions"
    tools = row.take(column)
    if isinstance(tools, str) and not tools.strip():
        return None
    tools = read_json_cell(tools, column)
    if not tools:
        return None
    if not isinstance(tools, list):
        raise InvalidDataset(f"{column} must be a list of functions, got {shorten(tools)}")
    left = set[str]() if ignored is None else ignored
    return [_read_tool(tool, f"{column}[{index}]", left) for index, tool in enumerate(tools)]


def read_json_cell(value: Any, where: str, beginning: str = "") -> Any:
    """Parse a text as JSON (if it starts with `beginning`); any other value is returned unchanged."""
    if not isinstance(value, str) or not value.strip().startswith(beginning):
        return value
    try:
        return parse_json(value)
    except (ValueError, RecursionError) as error:
        raise InvalidDataset(f"{where} must be JSON: {error}; got {shorten(value)}") from error


def _read_tool(tool: Any, where: str, ignored: set[str]) -> Tool:
    tool = read_json_cell(tool, where, "{")
    function = tool.get("function") if isinstance(tool, dict) else None
    if isinstance(function, dict):
        ignored.update(f"tools[].{key}" for key in tool.keys() - {"type", "function"} if tool[key] not in EMPTY)
    elif isinstance(tool, dict):  # as in `functions`, or flat beside `type` as in the Responses API
        function = {key: value for key, value in tool.items() if (key, value) != ("type", "function")}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidDataset(f"{where} must be a function with a name, got {shorten(tool)}")
    if isinstance(parameters := function.get("parameters"), str):
        function = function | {"parameters": read_json_cell(parameters, f"{where}'s parameters", "{")}
    _check_json(function, where)
    return {"type": "function", "function": function}


def _read_message(message: Any, where: str, ignored: set[str]) -> Message:
    """Read `role` and `content` (OpenAI) or `from` and `value` (ShareGPT); text parts are joined."""
    message = read_json_cell(message, where, "{")
    if not isinstance(message, dict):
        raise InvalidDataset(f"{where} must be a message with role and content, got {shorten(message)}")
    fields = Fields(message)
    role = fields.take("role", "from")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidDataset(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
    content = fields.take("content", "value")
    text, thought = join_parts(content, where, ignored)
    read: Message = {"role": ROLES[role], "content": text}
    if ROLES[role] == "assistant":
        _read_answer(fields, role, read, thought, where, ignored)
    elif thought:
        ignored.add("messages[].content[].thinking")
    for name in ("tool_call_id", "name"):
        if isinstance(message.get(name), str):
            read[name] = fields.take(name)
    if read["content"] is None and ("tool_calls" in read or "reasoning_content" in read):
        read["content"] = ""
    if read["content"] is None and isinstance(message.get("refusal"), str):
        raise InvalidDataset(f"{where} has a refusal and no content; put its text into content to have it learned")
    if not isinstance(read["content"], str):
        raise InvalidDataset(f"{where} must have text as its content, got {shorten(content)}")
    ignored.update(fields.list_ignored("messages[]."))
    return read


def _read_answer(fields: Fields, role: str, read: Message, thought: str, where: str, ignored: set[str]) -> None:
    """Read what only an assistant's turn may have: calls, reasoning, a weight."""
    calls = fields.take("tool_calls", FUNCTION_CALL)
    if role == FUNCTION_CALL and not calls:
        calls, read["content"] = read_json_cell(read["content"], f"{where}'s call"), None
    calls = read_json_cell(calls, f"{where}'s calls")
    if calls:
        calls = calls if isinstance(calls, list) else [calls]
        read["tool_calls"] = [_read_call(call, f"{where}'s call", ignored) for call in calls]
    reasoning = fields.take(*REASONING) or thought
    if not isinstance(reasoning, str):
        raise InvalidDataset(f"{where} must have text as its reasoning, got {shorten(reasoning)}")
    if reasoning.strip():
        read["reasoning_content"] = reasoning
    if not _read_weight(fields, where):
        read["weight"] = 0


def _read_weight(fields: Fields, where: str) -> bool:
    """Whether a turn is supervised: OpenAI's `weight`, or a flag with the same meaning."""
    weight = fields.take("weight")
    if not (weight is None or (isinstance(weight, int | float) and weight in (0, 1))):
        raise InvalidDataset(f"{where} has the weight {shorten(weight)}; known are 0 (read only) and 1 (learned)")
    flags = [fields.take(name) for name in FLAGS if _is_flag(fields.values.get(name))]
    return weight != 0 and all(flags)


def _is_flag(value: Any) -> bool:
    """Whether the value is a flag: true, false, 0 or 1; a column `loss` may hold measured losses instead."""
    return isinstance(value, int | float) and value in (0, 1)


def _read_call(call: Any, where: str, ignored: set[str]) -> dict[str, Any]:
    """Read a call as `{"type": "function", "function": {"name", "arguments"}}`, with arguments as an object.

    Templates expect an object ("Tool use" in https://huggingface.co/docs/transformers/chat_extras); OpenAI has text.
    """
    call = read_json_cell(call, where, "{")
    outer = Fields(call if isinstance(call, dict) else {})
    outer.take("type")
    function = outer.take("function")
    inner = Fields(function) if isinstance(function, dict) else outer
    name = inner.take("name")
    if not isinstance(name, str):
        raise InvalidDataset(f"{where} must have the name of a function, got {shorten(call)}")
    arguments = inner.take("arguments", "parameters")
    arguments = {} if arguments in (None, "") else read_json_cell(arguments, f"{where}'s arguments")
    if not isinstance(arguments, dict):
        raise InvalidDataset(f"{where}'s arguments must be an object, got {shorten(arguments)}")
    _check_json(arguments, f"{where}'s arguments")
    read = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if isinstance(outer.values.get("id"), str):
        read["id"] = outer.take("id")
    for fields in {id(part): part for part in (outer, inner)}.values():
        ignored.update(fields.list_ignored("messages[].tool_calls[]."))
    return read


def _check_json(value: Any, where: str) -> None:
    """Refuse values that JSON, and so a template, can't represent: NaN, a date from Parquet, half a character."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDataset(f"{where} can't be written as JSON: {error}; got {shorten(value)}") from error
