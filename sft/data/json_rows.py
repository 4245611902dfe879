"""Reads the rows of a JSON list one after another, so that a list of any length takes little memory."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from sft.data.data_stream import MAX_LINE_BYTES, read_utf8
from sft.data.fields import parse_json_at
from sft.data.file_content import explain_bytes
from sft.data.rows import NumberedRow, check_object, shorten
from sft.errors import InvalidDataset

MARGIN = 16  # characters at the end of a piece of text in which an error may be that of a value that goes on
UNENDED = "Unterminated string"
_BLANKS = re.compile(r"[ \t\n\r]*")


def is_list(name: str, stream: BinaryIO) -> bool:
    """Whether the file is a JSON list (of anything); False if it is an object a line.

    Raises:
        InvalidDataset: it is neither.
    """
    text = JsonText(name, read_utf8(name, stream))
    if text.peek() in ("", "["):
        return True
    value = text.take_value()
    if not text.peek():
        kind = f"one object with {shorten(list(value))}" if isinstance(value, dict) else type(value).__name__
        raise InvalidDataset(f"{name} must hold a list of rows, or an object a line, got {kind}")
    if text.line == 1:
        raise text.refuse("Extra data")
    return False


def is_whole_list(name: str, stream: BinaryIO) -> bool:
    """Whether the file is a JSON list without an error; reads all of it."""
    try:
        for _ in read_list(name, stream):
            pass
    except InvalidDataset:
        return False
    return True


def read_list(name: str, stream: BinaryIO) -> Iterator[NumberedRow]:
    """Yield the values of a JSON list, numbered from 1; a value that is no object is a `BrokenRow`.

    Raises:
        InvalidDataset: it is no list, or damaged; after the values before the damage.
    """
    text = JsonText(name, read_utf8(name, stream))
    if not text.peek():
        return
    if not text.take("["):
        raise text.refuse("Expecting a list")
    number = 0
    while number or text.peek() != "]":
        number += 1
        yield number, check_object(text.take_value())
        if text.peek() == "]":
            break
        if not text.take(","):
            raise text.refuse("Expecting ',' delimiter")
    text.take("]")
    if text.peek():
        raise text.refuse("Extra data")


class JsonText:
    """JSON in pieces of UTF-8, of which as little is kept as the next value needs."""

    def __init__(self, name: str, pieces: Iterable[bytes]) -> None:
        self._name = name
        self._pieces = iter(pieces)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._decoded_bytes = self._dropped_lines = 0
        self._text, self._place = "", 0  # what is not dropped, and the place of the next character
        self._has_ended = False
        self._damage: InvalidDataset | None = None  # right after the text

    @property
    def line(self) -> int:
        """The line of the next character, from 1."""
        return self._dropped_lines + self._text.count("\n", 0, self._place) + 1

    def refuse(self, reason: str) -> InvalidDataset:
        """The error for the next character."""
        return InvalidDataset(f"{self._name} line {self.line}: {reason}")

    def peek(self) -> str:
        """The next character that is no blank, empty at the end."""
        while True:
            blanks = _BLANKS.match(self._text, self._place)
            self._place = blanks.end() if blanks else self._place
            if self._place < len(self._text):
                return self._text[self._place]
            if self._has_ended:
                return ""
            self._read()

    def take(self, mark: str) -> bool:
        """Whether this is the next character that is no blank, which is taken then."""
        is_next = self.peek() == mark
        self._place += is_next
        return is_next

    def take_value(self) -> Any:
        """The next value. Raises InvalidDataset if there is none, or one of more than MAX_LINE_BYTES characters."""
        self.peek()
        while True:
            try:
                value, end = parse_json_at(self._text, self._place)
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith(UNENDED) or error.pos >= len(self._text) - MARGIN
                if self._has_ended or not may_go_on:
                    line = self._dropped_lines + error.lineno
                    raise InvalidDataset(f"{self._name} line {line}: {error.msg}") from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, very deep nesting
                raise InvalidDataset(f"{self._name} can't be read as JSON: {error}") from error
            else:
                is_number = self._text[end - 1] not in '}]"'  # of which this may be a part
                if not is_number or self._has_ended or end < len(self._text) - MARGIN:
                    self._place = end
                    return value
            if len(self._text) - self._place > MAX_LINE_BYTES:
                raise InvalidDataset(
                    f"{self._name} has a value of more than {MAX_LINE_BYTES >> 20} MiB, which is no row; make a list "
                    "of rows of it"
                )
            self._read()

    def _read(self) -> None:
        """Read as much again as is kept, so that a long value is not parsed often. Raises the damage that is next."""
        if self._damage:
            raise self._damage
        self._dropped_lines += self._text.count("\n", 0, self._place)
        kept = self._text[self._place :]
        pieces, size = [kept], 0
        while size <= len(kept) and not self._has_ended and not self._damage:
            pieces.append(self._decode(next(self._pieces, b"")))
            size += len(pieces[-1])
        self._text, self._place = "".join(pieces), 0

    def _decode(self, content: bytes) -> str:
        before = self._decoded_bytes - len(self._decoder.getstate()[0])  # bytes before those that are decoded now
        self._decoded_bytes += len(content)
        self._has_ended = not content
        try:
            return self._decoder.decode(content, final=self._has_ended)
        except UnicodeDecodeError as error:
            self._has_ended = False
            self._damage = InvalidDataset(f"{self._name} is {explain_bytes(error, before)}")
            return error.object[: error.start].decode("utf-8")
