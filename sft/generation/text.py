"""The text of tokens as they come: only whole characters, and nothing that may be the begin of a stop text."""

from collections.abc import Collection
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"  # decoded from tokens that end inside a character


class TextReader:
    """Decodes the tokens of one sequence, up to the first of the stop texts.

    Args:
        kept: special tokens that are part of the text; others are not.

    Attributes:
        length: characters released so far.
        has_stopped: a stop text was found; it and what follows is not released.
    """

    def __init__(self, tokenizer: Any, stops: tuple[str, ...] = (), kept: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._left_out = list_left_out(tokenizer, kept) if kept else None
        self._ids: list[int] = []
        self._start, self._read = 0, 0  # the window that is decoded, and what of it was read already
        self._held = ""
        self.length = 0
        self.has_stopped = False

    @property
    def decoded(self) -> int:
        """Characters decoded so far, released or not."""
        return self.length + len(self._held)

    def add(self, token: int) -> str:
        """Add a token; returns the text that is certain now."""
        self._ids.append(token)
        before, now = self._decode(self._ids[self._start : self._read]), self._decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith(BROKEN):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """The rest of the text; characters that are not whole become replacement characters."""
        if self.has_stopped:
            return ""
        before, now = self._decode(self._ids[self._start : self._read]), self._decode(self._ids[self._start :])
        text = self._release(now[len(before) :])
        if not self.has_stopped:
            text, self._held, self.length = text + self._held, "", self.length + len(self._held)
        return text

    def _release(self, new: str) -> str:
        self._held += new
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.has_stopped = True
            text, self._held = self._held[: min(places)], ""
        else:
            kept = max((measure_overlap(self._held, stop) for stop in self._stops), default=0)
            text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self.length += len(text)
        return text

    def _decode(self, ids: list[int]) -> str:
        is_plain = self._left_out is None
        if self._left_out:
            ids = [one for one in ids if one not in self._left_out]
        return str(self._tokenizer.decode(ids, skip_special_tokens=is_plain, clean_up_tokenization_spaces=False))


def list_left_out(tokenizer: Any, kept: Collection[str]) -> set[int]:
    """The special tokens but those that are kept."""
    added = tokenizer.added_tokens_decoder.items()
    return {number for number, token in added if token.special and token.content not in kept}


def measure_overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop text begins."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
