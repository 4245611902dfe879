"""Receives a file of a multipart form (RFC 7578) into a folder, piece by piece: nothing of it is held in memory."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from anyio import to_thread
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from jobs.errors import UploadTooLarge
from jobs.own_data.naming import MAX_FILENAME
from jobs.own_data.staging import noticing_full_disk

FILE = "file"
BUFFER_BYTES = 2**20
MAX_PARTS = 16
MAX_TEXT_BYTES = 2**14  # of all other fields, their names and headers


@dataclass
class ReceivedForm:
    """A form with one file.

    Attributes:
        fields: the text of the other fields, by name.
        path: the file.
        filename: its name as the client calls it; not to be used as a path.
    """

    path: Path
    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    size: int = 0
    sha256: str = ""


Check = Callable[[str, Mapping[str, str]], None]


def accept_any(filename: str, fields: Mapping[str, str]) -> None:
    """Accept a file of any name."""


async def receive_form(
    request: Request,
    folder: Path,
    names: Collection[str] = (),
    field: str = FILE,
    max_bytes: int | None = None,
    check: Check = accept_any,
) -> ReceivedForm:
    """Write the form's file into `folder`.

    Args:
        names: of the text fields that the form may have beside the file.
        field: that has the file.
        max_bytes: of the file.
        check: called with the file's name and the fields before it, when its content begins; may raise.

    Raises:
        RequestValidationError: it is not a form with one file and known fields.
        UploadTooLarge: the file has more than `max_bytes`.
        DiskFull: there is no space for it.
        HTTPException: 413 or 408, from `api.limits.BodyLimit`.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise invalid_form(f"the body must be sent with Content-Type: multipart/form-data, with a field {field}")
    with noticing_full_disk(folder), (folder / "content").open("xb") as target:
        reading = _Reading(field, names, target, check)
        try:
            parser = MultipartParser(options[b"boundary"], reading.callbacks())
            preamble = _Preamble(options[b"boundary"])
            async for chunk in request.stream():
                parser.write(preamble.skip(chunk))
                if len(reading.unwritten) >= BUFFER_BYTES:
                    await to_thread.run_sync(reading.flush)
                if max_bytes is not None and reading.size > max_bytes:
                    raise UploadTooLarge(f"{field} must have at most {max_bytes} bytes")
            parser.write(preamble.rest)
            await to_thread.run_sync(reading.flush)
            parser.finalize()
        except FormParserError as error:
            raise invalid_form(f"the body is not a valid form: {error}") from error
    return reading.finish(Path(target.name))


def invalid_form(problem: str, name: str | None = None) -> RequestValidationError:
    """The error of an invalid form, or of its field with this name; `problem` says what was given, if it matters."""
    place = ("body",) if name is None else ("body", name)
    return RequestValidationError([{"type": "value_error", "loc": place, "msg": problem}])


class _Preamble:
    """Text before a form's first boundary, which is no part of it (RFC 2046, 5.1.1); the parser takes none."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._waiting = bytearray()
        self._has_ended = False

    def skip(self, chunk: bytes) -> bytes:
        """What of the form has arrived from its first boundary on."""
        if self._has_ended:
            return chunk
        self._waiting += chunk
        start = len(self._waiting) - len(self._waiting.lstrip(b"\r\n"))
        if not self._waiting.startswith(self._delimiter, start):
            start = self._waiting.find(b"\r\n" + self._delimiter)
        if max(start, len(self._waiting) - len(self._delimiter) if start < 0 else 0) > MAX_TEXT_BYTES:
            raise invalid_form(f"no boundary {self._delimiter[2:]!r:.80} is in its first {MAX_TEXT_BYTES} bytes")
        if start < 0:
            return b""
        self._has_ended = True
        form = bytes(self._waiting[start:])
        self._waiting.clear()
        return form

    @property
    def rest(self) -> bytes:
        """A body without a boundary, for the parser to say what is wrong."""
        return bytes(self._waiting)


class _Reading:
    """What the parser found so far."""

    def __init__(self, field: str, names: Collection[str], target: BinaryIO, check: Check) -> None:
        self.unwritten = bytearray()
        self._field = field
        self._names = names
        self._check = check
        self._target = target
        self._digest = hashlib.sha256()
        self._form = ReceivedForm(Path())
        self._header, self._value = bytearray(), bytearray()
        self._disposition: bytes = b""
        self._name = ""
        self._text = bytearray()
        self._parts = self._text_bytes = 0
        self._has_file = self._has_ended = False

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": partial(self._add_text, self._header),
            "on_header_value": partial(self._add_text, self._value),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    @property
    def size(self) -> int:
        """Bytes of the file that were read so far."""
        return self._form.size + len(self.unwritten)

    def flush(self) -> None:
        """Write what was read."""
        self._digest.update(self.unwritten)
        self._target.write(self.unwritten)
        self._form.size += len(self.unwritten)
        self.unwritten.clear()

    def finish(self, path: Path) -> ReceivedForm:
        if not self._has_ended:
            raise invalid_form("the form ends before its last boundary; send all of it")
        if not self._has_file:
            raise invalid_form("must be given: a field with a file and its name", self._field)
        self._form.path, self._form.sha256 = path, self._digest.hexdigest()
        return self._form

    def _begin(self) -> None:
        self._parts += 1
        self._disposition, self._name = b"", ""
        self._text.clear()
        if self._parts > MAX_PARTS:
            raise invalid_form(f"the form has more than {MAX_PARTS} fields")

    def _add_text(self, target: bytearray, data: bytes, start: int, end: int) -> None:
        self._text_bytes += end - start
        if self._text_bytes > MAX_TEXT_BYTES:
            raise invalid_form(f"the form's fields but {self._field} must have at most {MAX_TEXT_BYTES} bytes")
        target += data[start:end]

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == self._field:
            if self._has_file:
                raise invalid_form("must be given once; send one file at a time", self._field)
            self._has_file = True
            name = _unescape(options.get(b"filename", b"")).decode("utf-8", "replace")
            if not name or len(name) > MAX_FILENAME or not name.isprintable():
                rule = f"must have a name of 1 to {MAX_FILENAME} printable characters"
                raise invalid_form(f"{rule}, got {name!r:.80}", self._field)
            self._check(name, self._form.fields)
            self._form.filename = name
        elif self._name not in self._names:
            known = ", ".join([self._field, *self._names])
            raise invalid_form(f"{self._name!r:.80} is not a field of this form; it takes {known}")
        elif self._name in self._form.fields:
            raise invalid_form("must be given once", self._name)

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._field:
            self.unwritten += data[start:end]
        else:
            self._add_text(self._text, data, start, end)

    def _end(self) -> None:
        if self._name == self._field:
            return
        try:
            text = self._text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise invalid_form("must be UTF-8", self._name) from error
        if "\0" in text:
            raise invalid_form("must not hold a NUL character", self._name)
        self._form.fields[self._name] = text

    def _finish(self) -> None:
        self._has_ended = True


def _unescape(filename: bytes) -> bytes:
    """A file's name as it was before clients escaped the characters that end a header's text.

    https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data
    """
    return filename.replace(b"%22", b'"').replace(b"%0A", b"\n").replace(b"%0D", b"\r")
