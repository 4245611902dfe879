"""The forms in which models write calls of functions, and which of them a chat template uses.

Each form is read by transformers' parser of responses (`parse_response`).
"""

import json
import re
from typing import Any, NamedTuple

from sft.data.messages import Tool

FUNCTION = {"name": "{name}", "arguments": "{arguments}"}


class FunctionCall(NamedTuple):
    """A call: the function's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


class CallForm(NamedTuple):
    """How a model writes its calls.

    Attributes:
        opening: text with which a call begins, or a list of calls.
        closing: text with which it ends; empty for the end of the answer.
        fields: for `parse_response`, one dictionary for each way to write what stands between the two.
        is_whole_answer: the call begins with the answer, and `opening` is a part of it.
        tokens: what the tokenizer may have as special tokens, which are otherwise no part of the text.
    """

    opening: str
    closing: str
    fields: tuple[dict[str, Any], ...]
    is_whole_answer: bool = False
    tokens: tuple[str, ...] = ()


def _field(**more: Any) -> dict[str, Any]:
    return {"content": "json", **more}


_AS_OBJECT = {"tool_calls": _field(transform=[{"function": "{content}"}])}
_AS_PARAMETERS = {
    "tool_calls": _field(
        transform=[{"function": {"name": "{content.name}", "arguments": "{content.parameters}"}}],
    )
}
_AS_LIST = {"tool_calls": _field(transform_each=True, transform={"function": FUNCTION})}
_AS_TAGS = {  # Qwen3.5 and Qwen3-Coder; as in transformers.cli.serving.utils
    "tool_calls": {
        "open_pattern": r"\s*<function=(?P<name>[^>\n]+)>",
        "close_pattern": r"</function>\s*",
        "repeats": True,
        "content": "xml-inline",
        "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
        "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
    },
    "rest": {"content": "text"},
}
# A value that is cut off would be read as if it were whole, or left out.
_WHOLE_TAGS = re.compile(
    r"\s*<function=[^>\n]+>(\s*<parameter=[^>\n]+>((?!</parameter>).)*</parameter>)*\s*</function>\s*", re.DOTALL
)
_DEEPSEEK = {
    "tool_calls": _field(
        open_pattern="<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\n]+)\n```json\n",  # noqa: RUF001
        close="\n```<｜tool▁call▁end｜>",  # noqa: RUF001
        repeats=True,
        transform={"function": {"name": "{name}", "arguments": "{content}"}},
    ),
    "rest": {"content": "text"},
}
_DEEPSEEK_TOKENS = tuple(
    f"<｜tool▁{name}｜>"  # noqa: RUF001
    for name in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")
)

FORMS = {
    "tags": CallForm(  # Hermes, Qwen and many others
        "<tool_call>", "</tool_call>", (_AS_OBJECT, _AS_TAGS), tokens=("<tool_call>", "</tool_call>")
    ),
    "mistral": CallForm("[TOOL_CALLS]", "", (_AS_LIST,), tokens=("[TOOL_CALLS]",)),
    "deepseek": CallForm(_DEEPSEEK_TOKENS[0], _DEEPSEEK_TOKENS[-1], (_DEEPSEEK,), tokens=_DEEPSEEK_TOKENS),
    "llama": CallForm("{", "", (_AS_PARAMETERS,), is_whole_answer=True),
}


def read_calls(form: CallForm, text: str, tools: list[Tool]) -> list[FunctionCall] | None:
    """Read what a model wrote between opening and closing; None if it is no call, or not only that.

    Args:
        tools: functions that may be called; the types of their parameters decide on those of texts without any.
    """
    for fields in form.fields:
        if fields is _AS_TAGS and not _WHOLE_TAGS.fullmatch(text):
            continue
        try:
            if found := _parse(fields, text, tools):
                return found
        except (ValueError, KeyError, TypeError, RecursionError):  # the model wrote it
            continue
    return None


def _parse(fields: dict[str, Any], text: str, tools: list[Tool]) -> list[FunctionCall]:
    from transformers.utils.chat_parsing import parse_response

    message = parse_response(text, {"start_anchor": "\0", "fields": fields}, prefix="", tools=tools)
    if message.get("rest"):
        raise ValueError("text beside the calls")
    found: list[FunctionCall] = []
    for one in message.get("tool_calls", []):
        function = one["function"]
        name, arguments = function["name"], function["arguments"]
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            raise ValueError("a call needs a name and an object")
        call = FunctionCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
        "".join(call).encode()  # half of a surrogate pair is no text that can be sent
        found.append(call)
    return found
