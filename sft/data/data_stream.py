"""Opens data files as streams of bytes, and reads text from them in whole lines, as UTF-8."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from sft.data.file_content import COMPRESSED_SUFFIXES, check_content, check_kind
from sft.errors import InvalidDataset

BLOCK_BYTES = 1 << 20  # read at once
FREE_BYTES, MOST_EXPANSION = 1 << 26, 250  # a compressed file may unpack to so much, and so many times its size more
MAX_LINE_BYTES = 1 << 28
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".jsonl.gz", ".jsonl.zst")
BOM = codecs.BOM_UTF8


@contextmanager
def open_data(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Open a data file; yields its bytes, unpacked, and the suffix that says what they are.

    Raises:
        InvalidDataset: it is missing, or not what its suffix says.
    """
    suffix = next((known for known in SUFFIXES if path.name.lower().endswith(known)), None)
    if suffix is None and path.suffix.lower() in COMPRESSED_SUFFIXES and path.is_file():
        check_kind(path)
        raise InvalidDataset(f"{path.name} is an archive by its name; unpack it first")
    if suffix is None:
        raise InvalidDataset(f"{path.name} must be one of {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'}")
    if not path.is_file():
        raise InvalidDataset(f"{path} is not a file")
    check_kind(path)
    with path.open("rb") as stream:
        if suffix in (".jsonl.gz", ".jsonl.zst"):
            yield cast("BinaryIO", _Unpacked(path, stream)), ".jsonl"
        else:
            yield stream, suffix


class _Unpacked:
    """The content of a file compressed with gzip or Zstandard.

    `read` raises InvalidDataset if the file is damaged, unpacks to far more than text does, or holds no text.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._name = path.name
        self._most = FREE_BYTES + MOST_EXPANSION * path.stat().st_size
        self._total = 0
        self._stream = gzip.GzipFile(fileobj=stream) if path.suffix.lower() == ".gz" else _open_zstandard(stream)

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end only."""
        pieces: list[bytes] = []
        missing = size
        try:
            while missing and (piece := self._stream.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
        except MemoryError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            raise InvalidDataset(f"{self._name} can't be unpacked ({error}); compress it again") from error
        content = b"".join(pieces)
        if not self._total:
            check_content(content, self._name)
        self._total += len(content)
        if self._total > self._most:
            raise InvalidDataset(
                f"{self._name} unpacks to more than {MOST_EXPANSION} times its size, which text does not; look at what "
                "it holds, and unpack it if that is right"
            )
        return content


def _open_zstandard(stream: BinaryIO) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stream), "zstd")


def read_text_blocks(name: str, stream: BinaryIO) -> Iterator[bytes]:
    """`read_utf8` in blocks of whole lines. Also raises InvalidDataset for a line longer than MAX_LINE_BYTES."""
    if isinstance(stream, io.BufferedReader) and is_utf8(stream):
        yield from _read_lines(name, stream)
        return
    pieces: list[bytes] = []  # of a line that has not ended yet
    size = 0
    for content in read_utf8(name, stream):
        end = _find_line_end(content)
        if end:
            yield b"".join([*pieces, content[:end]])
            pieces, size, content = [], 0, content[end:]
        pieces.append(content)
        size += len(content)
        if size > MAX_LINE_BYTES:
            raise refuse_line(name)
    if size:
        yield b"".join(pieces)


def is_utf8(stream: io.BufferedReader) -> bool:
    """Whether text can be read without conversion, given its beginning; nothing is taken from the stream."""
    return json.detect_encoding(stream.peek(4)[:4]) in ("utf-8", "utf-8-sig")


def refuse_line(name: str) -> InvalidDataset:
    """The error for a line that is longer than MAX_LINE_BYTES."""
    return InvalidDataset(
        f"{name} has a line of more than {MAX_LINE_BYTES >> 20} MiB, which is no row; put each row on a line"
    )


def _read_lines(name: str, stream: io.BufferedReader) -> Iterator[bytes]:
    """`read_text_blocks` of a file in UTF-8, with a copy less."""
    content = stream.read(BLOCK_BYTES).removeprefix(BOM)
    while content:
        if not content.endswith(b"\n"):
            content += stream.readline(MAX_LINE_BYTES + 1)
            if len(content) > MAX_LINE_BYTES + BLOCK_BYTES:
                raise refuse_line(name)
        yield content
        content = stream.read(BLOCK_BYTES)


def _find_line_end(content: bytes) -> int:
    """The end of the last line that surely ends in the content; a carriage return at its end may be half of one."""
    return content.rfind(b"\n") + 1 or content.rfind(b"\r", 0, -1) + 1


def read_utf8(name: str, stream: BinaryIO) -> Iterator[bytes]:
    """Read text as UTF-8 without a byte order mark; UTF-16 and UTF-32 are converted.

    Those two are recognized by their byte order mark, or by the positions of zero bytes in the first characters.
    Bytes that are not UTF-8 are left for the reader to report, row by row. Raises InvalidDataset for damaged text.
    """
    content = stream.read(BLOCK_BYTES)
    encoding = json.detect_encoding(content[:4])
    if encoding in ("utf-8", "utf-8-sig"):
        content = content.removeprefix(BOM)
        while content:
            yield content
            content = stream.read(BLOCK_BYTES)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    is_first = True
    try:
        while True:
            text = decoder.decode(content, final=not content)
            yield (text.removeprefix("\ufeff") if is_first else text).encode("utf-8")
            if not content:
                return
            content, is_first = stream.read(BLOCK_BYTES), False
    except UnicodeError as error:
        raise InvalidDataset(
            f"{name} looks like {encoding.upper()} but is damaged ({error}); save it as UTF-8"
        ) from error
