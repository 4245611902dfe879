"""The tokens of an answer as text and as bytes, of which several may make up one character."""

import re
from collections.abc import Collection
from functools import cached_property
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from sft.generation.text import BROKEN, list_left_out

_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}  # of byte-level BPE
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's token of a byte


class TokenTexts:
    """Describes the tokens of one answer, in their order.

    The bytes of all tokens, joined, are those of the answer's text. A special token that is no part of the text has
    none, as in OpenAI's interface.

    Args:
        kept: special tokens that are part of the text, as for `TextReader`.
    """

    def __init__(self, tokenizer: Any, kept: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._kept = kept
        self._has_begun = False

    def describe(self, found: dict[str, Any]) -> dict[str, Any]:
        """Write a token of `sft.generation.sequences.Piece`, and the most likely ones, as text and bytes."""
        top = [{**self._write(token), "logprob": value} for token, value in found["top"]]
        written = {**self._write(found["token"]), "logprob": found["logprob"], "offset": found["offset"], "top": top}
        self._has_begun = self._has_begun or found["token"] not in self._left_out
        return written

    def _write(self, token: int) -> dict[str, Any]:
        text = self._read(token)
        is_left_out = token in self._left_out
        return {"token": text, "bytes": None if is_left_out else [*find_bytes(self._tokenizer, token, text)]}

    def _read(self, token: int) -> str:
        """The text of a token at its place: decoders drop the space that begins the first one."""
        if self._has_begun:
            ids, text = self._before
            whole = self._decode([*ids, token])
            if whole.startswith(text):
                return whole[len(text) :]
        return self._decode([token])

    @cached_property
    def _before(self) -> tuple[list[int], str]:
        """Tokens of a whole character, and their text."""
        ids = self._tokenizer.encode("a", add_special_tokens=False)
        return ids, self._decode(ids)

    @cached_property
    def _left_out(self) -> set[int]:
        return list_left_out(self._tokenizer, self._kept)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def find_bytes(tokenizer: Any, token: int, text: str) -> bytes:
    """The bytes of a token whose text is known: those of the text, or of a part of a character."""
    if BROKEN in text:
        name = str(tokenizer.convert_ids_to_tokens(token))
        if fallback := _FALLBACK.fullmatch(name):
            return bytes.fromhex(fallback[1])
        if all(letter in _BYTES for letter in name):
            return bytes(_BYTES[letter] for letter in name)
    return text.encode("utf-8", "replace")
