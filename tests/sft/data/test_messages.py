import json
from typing import Any

import pytest

from sft.data.fields import Fields
from sft.data.formats import Conversation, read_row
from sft.data.messages import read_messages, read_tools
from sft.errors import InvalidDataset

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
    assert read_tools(Fields({"tools": tools})) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "bot", "content": "a"}, r"messages\[0\] has the role 'bot'; known are system, developer, user"),
        ({"role": ["user"], "content": "a"}, r"messages\[0\] has the role \['user'\]; known"),
        ({"role": "user"}, r"messages\[0\] must have text as its content, got None"),
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            r"messages\[0\] has a content part of type 'image_url'; only text",
        ),
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
        read_tools(Fields({"tools": tools}))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_of_its_names(field: str) -> None:
    [message] = read_messages([{"role": "assistant", "content": "a", field: "hm"}], "messages")
    assert message == {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    [blank] = read_messages([{"role": "assistant", "content": "a", field: "\n\n"}], "messages")
    assert blank == {"role": "assistant", "content": "a"}


def test_content_parts_are_joined_and_thinking_is_reasoning() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": None},
        {"type": "output_text", "text": "a", "annotations": []},
        {"type": "text", "text": "b"},
    ]
    ignored: set[str] = set()
    [message] = read_messages([{"role": "assistant", "content": parts}], "messages", ignored)
    assert message == {"role": "assistant", "content": "ab", "reasoning_content": "hm"}
    assert ignored == {"messages[].content[].signature"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "refusal", "refusal": "No."},
        {"type": "tool_result", "content": "3"},
        {"text": "no type"},
    ],
)
def test_content_that_is_no_text_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidDataset, match=r"^messages\[0\] has a content part of type .*; only text can be learned"):
        read_messages([{"role": "user", "content": [{"type": "text", "text": "a"}, part]}], "messages")


@pytest.mark.parametrize(
    ("field", "value", "is_learned"),
    [
        *[("weight", value, False) for value in (0, 0.0, False)],
        *[("weight", value, True) for value in (1, 1.0, True, None)],
        *[(flag, value, bool(value)) for flag in ("loss", "train") for value in (True, False, 1, 0)],
    ],
)
def test_a_weight_says_whether_a_turn_is_learned(field: str, value: Any, is_learned: bool) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", field: value}]
    row = read_row({"messages": messages}, "chat")
    expected = Conversation([messages[0], {"role": "assistant", "content": "b"}])
    assert row == (expected if is_learned else expected._replace(read_only=frozenset({1})))


@pytest.mark.parametrize("weight", [0.5, 2, -1, "0", float("nan"), [0]])
def test_another_weight_is_refused(weight: Any) -> None:
    with pytest.raises(InvalidDataset, match=r"messages\[0\] has the weight .*; known are 0 \(read only\) and 1"):
        read_messages([{"role": "assistant", "content": "b", "weight": weight}], "messages")


def test_what_is_not_followed_is_named() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "a", "weight": 1, "tool_calls": None, "audio": None, "value": "other"},
            {"role": "assistant", "content": "b", "refusal": "no", "annotations": [], "reasoning_details": [1]},
            {"role": "assistant", "tool_calls": [CALLED | {"index": 0}], "reasoning": "x", "thinking": "y"},
        ],
        "conversations": [{"from": "human", "value": "c"}],
        "system": "Be brief.",
        "parallel_tool_calls": True,
        "tools": [{"type": "function", "function": FUNCTION, "strict": True}],
        "source": "web",
        "tags": [],
        "note": "",
    }
    row["messages"].insert(0, {"role": "system", "content": "Be long."})  # type: ignore[attr-defined]
    assert read_row(row, "auto").ignored == {
        "messages[].weight",
        "messages[].value",
        "messages[].refusal",
        "messages[].reasoning_details",
        "messages[].tool_calls[].index",
        "messages[].thinking",
        "conversations",
        "system",
        "parallel_tool_calls",
        "tools[].strict",
        "source",
    }


def test_functions_are_tools() -> None:
    row = EXPECTED.messages
    assert read_row({"messages": row, "functions": [FUNCTION], "tools": []}, "chat") == EXPECTED
    flat = [{"type": "function", **FUNCTION}]
    as_text = [json.dumps(FUNCTION | {"parameters": json.dumps(FUNCTION["parameters"])})]
    for tools in (flat, as_text):
        assert read_row({"messages": row, "tools": tools}, "chat") == EXPECTED


def test_messages_may_be_json_texts_one_by_one() -> None:
    """As the Json type of `datasets` stores them in Parquet."""
    messages = [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": "", "tool_calls": [json.dumps(CALLED)]},
    ]
    assert read_messages([json.dumps(message) for message in messages], "messages") == EXPECTED.messages[:2]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "assistant", "content": None, "refusal": "No."}, r"messages\[0\] has a refusal and no content"),
        ({"role": "assistant", "content": "a", "reasoning": {"effort": 1}}, "must have text as its reasoning, got"),
        ({"role": "assistant", "content": [{"type": "text", "text": None}]}, "must have text as its content, got"),
        (
            {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": float("nan")}}]},
            "call's arguments can't be written as JSON: Out of range float values",
        ),
    ],
)
def test_a_field_that_cannot_be_followed_is_refused(message: Any, reason: str) -> None:
    with pytest.raises(InvalidDataset, match=reason):
        read_messages([message], "messages")
