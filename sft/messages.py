"""Messages of a conversation, OpenAI's or ShareGPT's, in the one form that chat templates read."""

import json
from typing import Any

from sft.data_files import Row, shorten
from sft.errors import InvalidDataset

Message = dict[str, Any]  # role, content; perhaps tool_calls, tool_call_id, name, reasoning_content
Tool = dict[str, Any]  # {"type": "function", "function": {"name": ..., ...}}

FUNCTION_CALL = "function_call"  # ShareGPT's role of an assistant's turn that is a call, as JSON
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


def read_messages(value: Any, column: str) -> list[Message]:
    """A column's messages; a text cell (of a CSV file) may hold them as JSON.

    Raises:
        InvalidDataset: naming the message and what is wrong with it.
    """
    value = read_json_cell(value, column, "[")
    if not isinstance(value, list) or not value:
        raise InvalidDataset(f"{column} must be a list of messages, got {shorten(value)}")
    return [_read_message(message, f"{column}[{index}]") for index, message in enumerate(value)]


def read_tools(row: Row) -> list[Tool] | None:
    """The functions of a row's `tools` column, a list or JSON text, each as OpenAI writes it; None without any."""
    tools = row.get("tools")
    if isinstance(tools, str) and not tools.strip():
        return None
    tools = read_json_cell(tools, "tools")
    if not tools:
        return None
    if not isinstance(tools, list):
        raise InvalidDataset(f"tools must be a list of functions, got {shorten(tools)}")
    return [_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def read_json_cell(value: Any, where: str, beginning: str = "") -> Any:
    """What a text holds as JSON (if it begins so); any other value as it is."""
    if not isinstance(value, str) or not value.strip().startswith(beginning):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidDataset(f"{where} must be JSON: {error}; got {shorten(value)}") from error


def _read_tool(tool: Any, where: str) -> Tool:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidDataset(f"{where} must be a function with a name, got {shorten(tool)}")
    return {"type": "function", "function": function}


def _read_message(message: Any, where: str) -> Message:
    """`role` and `content` (OpenAI) or `from` and `value` (ShareGPT); a list of text parts is joined."""
    if not isinstance(message, dict):
        raise InvalidDataset(f"{where} must be a message with role and content, got {shorten(message)}")
    role = _pick(message, "role", "from")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidDataset(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
    content = _pick(message, "content", "value")
    calls = _pick(message, "tool_calls", FUNCTION_CALL) if ROLES[role] == "assistant" else None
    if role == FUNCTION_CALL and not calls:
        calls, content = read_json_cell(content, f"{where}'s call"), None
    read: Message = {"role": ROLES[role], "content": _join_parts(content)}
    if calls:
        calls = calls if isinstance(calls, list) else [calls]
        read["tool_calls"] = [_read_call(call, f"{where}'s call") for call in calls]
    for name in ("reasoning_content", "tool_call_id", "name"):
        if isinstance(message.get(name), str):
            read[name] = message[name]
    if read["content"] is None and ("tool_calls" in read or "reasoning_content" in read):
        read["content"] = ""
    if not isinstance(read["content"], str):
        raise InvalidDataset(f"{where} must have text as its content, got {shorten(content)}")
    return read


def _read_call(call: Any, where: str) -> dict[str, Any]:
    """`{"type": "function", "function": {"name", "arguments"}}`, the arguments as an object, as templates expect.

    See "Tool use" in https://huggingface.co/docs/transformers/chat_extras: OpenAI has them as JSON text.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidDataset(f"{where} must have the name of a function, got {shorten(call)}")
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else read_json_cell(arguments, f"{where}'s arguments")
    if not isinstance(arguments, dict):
        raise InvalidDataset(f"{where}'s arguments must be an object, got {shorten(arguments)}")
    read = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return read | {"id": call["id"]} if isinstance(call.get("id"), str) else read


def _join_parts(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _pick(message: dict[str, Any], *names: str) -> Any:
    """The first that is there; a Parquet file has every name in every message, with null for what is not."""
    return next((message[name] for name in names if message.get(name) is not None), None)
