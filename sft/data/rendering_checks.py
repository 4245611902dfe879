"""Checks that a chat template renders all of a conversation: text left out is an error, other fields are reported."""

import json
from collections.abc import Callable, Iterator

from sft.data.formats import Conversation
from sft.data.messages import REASONING, Message, Tool
from sft.errors import InvalidDataset

CALLING_TEMPLATES = "qwen, qwen3, llama3, mistral or deepseek3"
THOUGHT_END = "</think>"
SHORT = 12  # characters; shorter text may occur in the template's own words
REFERENCES = ("name", "tool_call_id", "tool_calls[].id")  # fields that templates need not render

Write = Callable[[list[Message], list[Tool] | None], str]  # renders messages and tools


def check_calls(answer: Message, index: int, written: str) -> None:
    """Raise InvalidDataset if the template rendered an answer with function calls incompletely."""
    if "tool_calls" not in answer:
        return
    if not all(call["function"]["name"] in written for call in answer["tool_calls"]):
        raise InvalidDataset(
            f"messages[{index}]: the chat template does not write calls of functions; choose template_name "
            f"{CALLING_TEMPLATES}"
        )
    if answer["content"].rpartition(THOUGHT_END)[2].strip() not in written:
        raise InvalidDataset(f"messages[{index}]: the chat template leaves out the text beside the call of a function")


def check_nothing_is_lost(text: str, row: Conversation, write: Write) -> None:
    """Raise InvalidDataset if the template left out a message or tools: many ignore roles they do not know."""
    for index, message in enumerate(row.messages):
        content = message["content"].strip()
        if message["role"] == "assistant":  # reasoning in it may be removed: see find_unwritten
            content = content.rpartition(THOUGHT_END)[2].strip()
        # Llama 3.1 renders tool results as JSON
        if content not in text and json.dumps(content, ensure_ascii=False)[1:-1] not in text:
            raise InvalidDataset(
                f"messages[{index}]: the chat template leaves out this {message['role']} message; "
                "choose another template_name"
            )
    for tool in row.tools or []:
        if tool["function"]["name"] not in text:
            raise InvalidDataset(f"the chat template does not write tools; choose template_name {CALLING_TEMPLATES}")
    if _may_hide_a_loss(text, row):
        _check_marked(row, write)


def _may_hide_a_loss(text: str, row: Conversation) -> bool:
    """Whether a part that is left out could still be found in the text: in another message or in the template."""
    if row.tools or any("tool_calls" in message for message in row.messages):
        return True
    whole = [message["content"] for message in row.messages]
    for message in row.messages:
        content = message["content"].strip()
        if not content:
            continue
        if len(content) < SHORT and message["role"] in ("system", "tool"):
            return True
        if text.count(content) != sum(other.count(content) for other in whole):
            return True
    return False


def _check_marked(row: Conversation, write: Write) -> None:
    """Render the conversation with unique marker words in place of its texts, and look for each of them."""
    marks: dict[str, str] = {}

    def mark(what: str) -> str:
        word = f"qz{len(marks)}zq"
        marks[word] = what
        return word

    messages = [_mark_message(message, index, mark) for index, message in enumerate(row.messages)]
    no_tools = f"the chat template does not write tools; choose template_name {CALLING_TEMPLATES}"
    tools = [tool | {"function": tool["function"] | {"name": mark(no_tools)}} for tool in row.tools or []]
    try:
        text = write(messages, tools or None)
    except InvalidDataset:  # a template may accept only certain names or forms
        return
    for word, loss in marks.items():
        if word not in text:
            raise InvalidDataset(loss)


def _mark_message(message: Message, index: int, mark: Callable[[str], str]) -> Message:
    left_out = f"messages[{index}]: the chat template leaves out"
    marked = dict(message)
    if message["content"].strip():
        what = f"{left_out} this {message['role']} message; choose another template_name"
        if "tool_calls" in message:
            what = f"{left_out} the text beside the call of a function"
        marked["content"] = mark(what)
    if "tool_calls" in message:
        calls = f"messages[{index}]: the chat template does not write calls of functions"
        arguments = f"{left_out} the arguments of a call"
        remedy = f"; choose template_name {CALLING_TEMPLATES}"
        marked["tool_calls"] = [
            call
            | {
                "function": {
                    "name": mark(calls + remedy),
                    "arguments": {name: mark(arguments + remedy) for name in call["function"]["arguments"]},
                }
            }
            for call in message["tool_calls"]
        ]
    return marked


def find_unwritten(text: str, row: Conversation, write: Callable[[list[Message]], str]) -> frozenset[str]:
    """Fields of messages that the template ignores: the text is the same without them."""
    unwritten = set(_find_lost_reasoning(text, row.messages))
    for field in (REASONING[0], *REFERENCES):
        values = [value for message in row.messages for value in _list_values(message, field)]
        if values and (
            not all(value.strip() in text for value in values) or _is_same(text, row.messages, field, write)
        ):
            unwritten.add(f"messages[].{field}")
    return frozenset(unwritten)


def _find_lost_reasoning(text: str, messages: list[Message]) -> Iterator[str]:
    for message in messages:
        if message["role"] != "assistant":
            continue
        if message.get(REASONING[0], "").strip() not in text:
            yield f"messages[].{REASONING[0]}"
        thought, end, _ = message["content"].partition(THOUGHT_END)
        if end and thought.rpartition("<think>")[2].strip() not in text:
            yield "messages[].content (<think>)"


def _list_values(message: Message, field: str) -> list[str]:
    if field == "tool_calls[].id":
        return [call["id"] for call in message.get("tool_calls", ()) if "id" in call]
    return [message[field]] if field in message else []


def _is_same(text: str, messages: list[Message], field: str, write: Callable[[list[Message]], str]) -> bool:
    try:
        return write([_leave_out(message, field) for message in messages]) == text
    except InvalidDataset:  # the template needs it
        return False


def _leave_out(message: Message, field: str) -> Message:
    if field == "tool_calls[].id" and "tool_calls" in message:
        calls = [{key: value for key, value in call.items() if key != "id"} for call in message["tool_calls"]]
        return message | {"tool_calls": calls}
    names = REASONING if field == REASONING[0] else (field,)
    return {key: value for key, value in message.items() if key not in names}
