import json
from typing import Any

import pytest

from sft.errors import InvalidDataset
from sft.formats import Conversation, read_row
from sft.messages import read_messages, read_tools

FUNCTION = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
CALLED = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
EXPECTED = Conversation(
    [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": "", "tool_calls": [CALLED]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3"},
    ],
    tools=[{"type": "function", "function": FUNCTION}],
)


def test_openai_and_sharegpt_calls_are_the_same_conversation() -> None:
    openai: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": "Add"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "3", "tool_calls": None},
            {"role": "assistant", "content": "It is 3", "tool_calls": None},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Add"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "It is 3"},
        ],
        "tools": json.dumps([FUNCTION]),
    }
    older = {
        "messages": [
            openai["messages"][0],
            {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
            {"role": "function", "content": "3"},
            openai["messages"][3],
        ],
        "tools": [FUNCTION],
    }
    cells = {"messages": json.dumps(openai["messages"]), "tools": json.dumps(openai["tools"])}  # of a CSV file
    for row in (openai, sharegpt, older, cells):
        assert read_row(row, "chat") == EXPECTED
        assert read_row(row, "auto") == EXPECTED


def test_ids_names_and_reasoning_are_kept() -> None:
    messages = [
        {"role": "assistant", "reasoning_content": "hm", "tool_calls": [{**CALLED, "id": "abc123xyz"}]},
        {"role": "tool", "content": "3", "tool_call_id": "abc123xyz", "name": "add"},
    ]
    assert read_messages(messages, "messages") == [{**messages[0], "content": ""}, messages[1]]


def test_a_sharegpt_turn_may_call_several_functions() -> None:
    value = json.dumps([{"name": "add", "arguments": {"a": 1}}, {"name": "now"}])
    [message] = read_messages([{"from": "function_call", "value": value}], "conversations")
    assert message["tool_calls"] == [CALLED, {"type": "function", "function": {"name": "now", "arguments": {}}}]


@pytest.mark.parametrize("tools", [None, "", " ", "[]", []])
def test_no_tools_are_none(tools: Any) -> None:
    assert read_tools({"tools": tools}) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "bot", "content": "a"}, r"messages\[0\] has the role 'bot'; known are system, developer, user"),
        ({"role": ["user"], "content": "a"}, r"messages\[0\] has the role \['user'\]; known"),
        ({"role": "user"}, r"messages\[0\] must have text as its content, got None"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"must have text as its content, got \[\{'type'"),
        ({"role": "user", "content": None, "tool_calls": [CALLED]}, "must have text as its content, got None"),
        ("Hi", r"messages\[0\] must be a message with role and content, got 'Hi'"),
        ({"from": "function_call", "value": "add(1)"}, r"messages\[0\]'s call must be JSON: .*; got 'add\(1\)'"),
        ({"from": "function_call", "value": "3"}, r"messages\[0\]'s call must have the name of a function, got 3"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, r"'s call must have the name of a function, got \{'id'"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "1 + 2"}}]},
            r"messages\[0\]'s call's arguments must be JSON: .*; got '1 \+ 2'",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]},
            r"messages\[0\]'s call's arguments must be an object, got \[1\]",
        ),
    ],
)
def test_a_message_of_another_shape_is_named(message: Any, reason: str) -> None:
    with pytest.raises(InvalidDataset, match=reason):
        read_messages([message], "messages")


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("add", "tools must be JSON: .*; got 'add'"),
        ({"name": "add"}, "tools must be a list of functions, got {'name'"),
        ([{"parameters": {}}], r"tools\[0\] must be a function with a name, got"),
    ],
)
def test_tools_of_another_shape_are_named(tools: Any, reason: str) -> None:
    with pytest.raises(InvalidDataset, match=reason):
        read_tools({"tools": tools})
