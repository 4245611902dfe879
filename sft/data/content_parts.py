"""Reads a message's content: text, or content parts, of which only text and an assistant's thinking are supported."""

from typing import Any

from sft.data.fields import Fields
from sft.data.rows import shorten
from sft.errors import InvalidDataset

TEXT_PARTS = ("text", "input_text", "output_text")  # Chat Completions', and the Responses API's
THINKING = "thinking"


def join_parts(content: Any, where: str, ignored: set[str]) -> tuple[Any, str]:
    """Join the text of all parts (None if none has text) and of the thinking parts; other content is unchanged.

    Raises:
        InvalidDataset: naming the part that is not text.
    """
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content, ""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in map(Fields, content):
        kind = part.take("type")
        if kind not in (*TEXT_PARTS, THINKING):
            raise InvalidDataset(
                f"{where} has a content part of type {shorten(kind)}; only text can be learned: take the part out"
            )
        text = part.take(THINKING if kind == THINKING else "text")
        if not isinstance(text, str | None):
            raise InvalidDataset(f"{where} has a content part whose text is {shorten(text)}")
        if text is not None:
            (thoughts if kind == THINKING else texts).append(text)
        ignored.update(part.list_ignored("messages[].content[]."))
    return "".join(texts) if texts else None, "".join(thoughts)
