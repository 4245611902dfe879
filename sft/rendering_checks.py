"""What a chat template left out of a conversation: an error where it is part of the text, else named as ignored."""

import json
from collections.abc import Callable, Iterator

from sft.errors import InvalidDataset
from sft.formats import Conversation
from sft.messages import REASONING, Message

CALLING_TEMPLATES = "qwen, qwen3, llama3, mistral or deepseek3"
THOUGHT_END = "</think>"
REFERENCES = ("name", "tool_call_id", "tool_calls[].id")  # fields that templates may write or not


def check_calls(answer: Message, index: int, written: str) -> None:
    """Raises InvalidDataset when the template wrote an answer that calls functions, but not all of it."""
    if "tool_calls" not in answer:
        return
    if not all(call["function"]["name"] in written for call in answer["tool_calls"]):
        raise InvalidDataset(
            f"messages[{index}]: the chat template does not write calls of functions; choose template_name "
            f"{CALLING_TEMPLATES}"
        )
    if answer["content"].rpartition(THOUGHT_END)[2].strip() not in written:
        raise InvalidDataset(f"messages[{index}]: the chat template leaves out the text beside the call of a function")


def check_nothing_is_lost(text: str, row: Conversation) -> None:
    """Many templates pass over roles and tools they do not know. Raises InvalidDataset when this one did."""
    for index, message in enumerate(row.messages):
        content = message["content"].strip()
        if message["role"] == "assistant":  # reasoning within it may go: see find_unwritten
            content = content.rpartition(THOUGHT_END)[2].strip()
        as_json = json.dumps(content, ensure_ascii=False)[1:-1]  # Llama 3.1 writes the result of a call so
        if content not in text and as_json not in text:
            raise InvalidDataset(
                f"messages[{index}]: the chat template leaves out this {message['role']} message; "
                "choose another template_name"
            )
    for tool in row.tools or []:
        if tool["function"]["name"] not in text:
            raise InvalidDataset(f"the chat template does not write tools; choose template_name {CALLING_TEMPLATES}")


def find_unwritten(text: str, row: Conversation, write: Callable[[list[Message]], str]) -> frozenset[str]:
    """Fields of messages that the template passed over: its text is the same without them."""
    unwritten = set(_find_lost_reasoning(text, row.messages))
    for field in REFERENCES:
        values = [value for message in row.messages for value in _list_values(message, field)]
        if values and (not all(value in text for value in values) or _is_same(text, row.messages, field, write)):
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
    return {key: value for key, value in message.items() if key != field}
