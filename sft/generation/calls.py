"""`CallReader`: separates calls of functions from the text of an answer while it is generated."""

from sft.data.messages import Tool
from sft.generation.call_forms import CallForm, FunctionCall, read_calls
from sft.generation.text import measure_overlap


class CallReader:
    """Reads the text of one answer. What is no call that can be read stays text; only white space beside calls is lost.

    Args:
        form: how the model writes calls.
        tools: functions that may be called.
    """

    def __init__(self, form: CallForm, tools: list[Tool]) -> None:
        self._form = form
        self._tools = tools
        self._held = ""  # may be, or begin with, a call
        self._is_inside = False
        self._searched = 0  # characters of a call in which the closing text does not begin
        self._space = ""  # white space at the end of the text so far
        self._follows_call = False
        self._has_text = False

    def read(self, text: str, is_last: bool = False) -> tuple[str, list[FunctionCall]]:
        """Take what is new of the answer; returns the text and the calls that are certain now."""
        self._held += text
        texts: list[str] = []
        calls: list[FunctionCall] = []
        while self._held and self._advance(texts, calls, is_last):
            pass
        if is_last and not self._follows_call:
            texts.append(self._space)
            self._space = ""
        return "".join(texts), calls

    def _advance(self, texts: list[str], calls: list[FunctionCall], is_last: bool) -> bool:
        """Take one step; False if more text is needed."""
        if not self._is_inside:
            return self._find_opening(texts, is_last)
        closing = self._form.closing
        end = self._held.find(closing, self._searched) if closing else -1
        if end < 0 and not is_last:
            self._searched = max(self._searched, len(self._held) - len(closing) + 1)
            return False
        block = self._held if end < 0 else self._held[: end + len(closing)]
        inner = block if self._form.is_whole_answer else block[len(self._form.opening) :]
        found = read_calls(self._form, inner[: len(inner) - len(closing)] if end >= 0 else inner, self._tools)
        self._held, self._is_inside = self._held[len(block) :], False
        if found:
            calls += found
            self._space, self._follows_call = "", True
        else:
            self._write(texts, block)
        return True

    def _find_opening(self, texts: list[str], is_last: bool) -> bool:
        opening = self._form.opening
        if self._form.is_whole_answer:
            start = self._held.lstrip()
            place = -1 if self._has_text or not start.startswith(opening) else len(self._held) - len(start)
            kept = len(self._held) if not start and not self._has_text else 0
        else:
            place = self._held.find(opening)
            kept = measure_overlap(self._held, opening)
        if place < 0:
            kept = 0 if is_last else kept
            self._write(texts, self._held[: len(self._held) - kept])
            self._held = self._held[len(self._held) - kept :]
            return False
        self._write(texts, self._held[:place])
        self._held, self._is_inside, self._searched = self._held[place:], True, len(opening)
        return True

    def _write(self, texts: list[str], text: str) -> None:
        """Release text, without the white space at its end, which may stand before a call."""
        if self._follows_call:
            text = text.lstrip()
        if not text:
            return
        text = self._space + text
        written = text.rstrip()
        self._space = text[len(written) :]
        if written:
            texts.append(written)
            self._follows_call, self._has_text = False, True
