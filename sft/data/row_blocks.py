"""Reads a data file in blocks of about a megabyte, so that a file of any size takes constant memory.

Finding the blocks is quick and is done in order; reading the rows of one (`read`) can be done in any process. The
blocks of a file depend on its content alone.
"""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sft.confinement import step
from sft.data.data_stream import open_data, read_text_blocks, read_utf8
from sft.data.file_content import RECODE, check_columns, count_parquet_rows
from sft.data.parts import list_parts
from sft.data.rows import BrokenRow, NumberedRow, Row, drop_nulls, read_line, read_list
from sft.errors import InvalidDataset

BLOCK_ROWS = 512  # of a file whose rows are no lines
DELIMITERS = ";\t|"  # accepted besides the comma


class LineBlock(NamedTuple):
    """Lines of a JSONL file; `first` is the number of the first one, from 1."""

    file: str
    first: int
    content: bytes

    def read(self) -> list[NumberedRow]:
        """The rows, in order; a line that is no JSON object becomes a `BrokenRow`."""
        with step(f"dataset_name: to read {self.file}", len(self.content)):
            lines = enumerate(self.content.splitlines(), self.first)
            return [(number, read_line(line)) for number, line in lines if line.strip()]

    def count_rows(self) -> int:
        """Number of rows."""
        return sum(1 for line in self.content.splitlines() if line.strip())

    @property
    def last(self) -> int:
        """Number of the last line."""
        return self.first + count_lines(self.content) - self.content.endswith((b"\n", b"\r"))

    def shift(self, number: int) -> "LineBlock":
        """The same lines after so many others."""
        return self._replace(first=self.first + number)

    def head(self, rows: int) -> "LineBlock":
        """Only the first of its lines."""
        return self._replace(content=b"".join(self.content.splitlines(keepends=True)[:rows]))


class TableBlock(NamedTuple):
    """Rows of a Parquet file, as a stream of Arrow's; `first` is the number of the first one, from 1."""

    file: str
    first: int
    content: bytes
    rows: int

    def read(self) -> list[NumberedRow]:
        """The rows, in order, without the nulls of nested values, so that they equal those of JSONL."""
        import pyarrow as pa

        with step(f"dataset_name: to read {self.file}", len(self.content)):
            table = pa.ipc.open_stream(self.content).read_all()
            rows: list[Row] = table.to_pylist(maps_as_pydicts="strict")
            for name in (field.name for field in table.schema if pa.types.is_nested(field.type)):
                for row in rows:
                    row[name] = drop_nulls(row[name])
        return list(enumerate(rows, self.first))

    def count_rows(self) -> int:
        """Number of rows."""
        return self.rows

    @property
    def last(self) -> int:
        """Number of the last row."""
        return self.first + self.rows - 1

    def shift(self, number: int) -> "TableBlock":
        """The same rows after so many others."""
        return self._replace(first=self.first + number)

    def head(self, rows: int) -> "RowBlock":
        """Only the first of its rows."""
        return RowBlock(self.read()[:rows])


class RowBlock(NamedTuple):
    """Rows that have been read."""

    rows: list[NumberedRow]

    def read(self) -> list[NumberedRow]:
        """The rows."""
        return self.rows

    def count_rows(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def last(self) -> int:
        """Number of the last row."""
        return self.rows[-1][0]

    def shift(self, number: int) -> "RowBlock":
        """The same rows after so many others."""
        return RowBlock([(place + number, row) for place, row in self.rows]) if number else self

    def head(self, rows: int) -> "RowBlock":
        """Only the first of its rows."""
        return RowBlock(self.rows[:rows])


Block = LineBlock | TableBlock | RowBlock


def read_blocks(path: Path) -> Iterator[Block]:
    """The blocks of a `.json` (one list), `.jsonl`, `.parquet` or `.csv` file, in order; none for an empty file.

    Those of all its parts, if it is one of several; the rows are then numbered through.

    Raises:
        InvalidDataset: the file as a whole is missing, of another kind, or malformed.
    """
    before = last = 0
    for part in list_parts(path):
        for block in read_file_blocks(part):
            block = block.shift(before)
            last = block.last
            yield block
        before = last


def read_file_blocks(path: Path) -> Iterator[Block]:
    """`read_blocks` of this file alone."""
    with open_data(path) as (stream, suffix):
        if suffix == ".parquet":
            yield from _read_parquet(path)
        elif suffix == ".csv":
            yield from _slice(_read_csv(path.name, stream, path.stat().st_size))
        elif suffix == ".json":
            with step(f"dataset_name: to read {path.name}", path.stat().st_size):
                rows = read_list(b"".join(read_utf8(path.name, stream)), path.name)
            yield from _slice(iter(rows))
        else:
            yield from _read_lines(path, stream)


def count_lines(content: bytes) -> int:
    """Number of lines of content that ends with a line, as `splitlines` makes them (old Mac lines end in \\r)."""
    alone = content.count(b"\r") - content.count(b"\r\n") if b"\r" in content else 0
    return content.count(b"\n") + alone


def _read_lines(path: Path, stream: BinaryIO) -> Iterator[Block]:
    first, is_begun = 1, False
    for content in read_text_blocks(path.name, stream):
        if not is_begun and content.strip():
            is_begun = True
            if content.lstrip()[:1] == b"[" and path.suffix.lower() == ".jsonl":
                rows = _read_as_list(path)  # a JSON list under the wrong suffix, or rows that are not objects
                if rows is not None:
                    yield from _slice(iter(rows))
                    return
        yield LineBlock(path.name, first, content)
        first += count_lines(content)


def _read_as_list(path: Path) -> list[NumberedRow] | None:
    with open_data(path) as (stream, _), step(f"dataset_name: to read {path.name}", path.stat().st_size):
        try:
            return read_list(b"".join(read_utf8(path.name, stream)), path.name)
        except InvalidDataset:
            return None


def _slice(rows: Iterator[NumberedRow]) -> Iterator[Block]:
    while block := list(islice(rows, BLOCK_ROWS)):
        yield RowBlock(block)


def _read_parquet(path: Path) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count_parquet_rows(path)
    first, what, size = 1, f"dataset_name: to read {path.name}", path.stat().st_size
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise InvalidDataset(f"{path.name} has two columns of one name: {', '.join(names)}")
            batches = file.iter_batches(BLOCK_ROWS)
            while True:
                with step(what, size):
                    batch = next(batches, None)
                    content = b"" if batch is None else _pack_batch(batch)
                if batch is None:
                    return
                yield TableBlock(path.name, first, content, batch.num_rows)
                first += batch.num_rows
    except MemoryError:  # Arrow's own is one too
        raise
    except (pa.ArrowException, OSError) as error:
        raise InvalidDataset(f"{path.name} is not a Parquet file: {error}") from error


def _pack_batch(batch: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _read_csv(name: str, stream: BinaryIO, size: int) -> Iterator[NumberedRow]:
    """Bytes that are not UTF-8 break only their row."""
    lines = _decode_lines(name, stream)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip("\r\n"):
            break
    records = enumerate(_read_records(chain(head, lines), _find_delimiter(head[-1] if head else ""), name), 1)
    while True:
        limit = csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than a long document
        try:
            with step(f"dataset_name: to read {name}", size):
                block = list(islice(records, BLOCK_ROWS))
        finally:
            csv.field_size_limit(limit)
        if not block:
            return
        yield from block


def _decode_lines(name: str, stream: BinaryIO) -> Iterator[str]:
    for content in read_text_blocks(name, stream):
        yield from io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")


def _find_delimiter(header: str) -> str:
    """The comma, unless the header has none and contains exactly one of DELIMITERS."""
    found = [mark for mark in DELIMITERS if mark in header]
    return found[0] if len(found) == 1 and "," not in header else ","


def _read_records(lines: Iterable[str], delimiter: str, name: str) -> Iterator[Row | BrokenRow]:
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BrokenRow(f"line {reader.line_num}", f"line {reader.line_num}: {error}")
            continue
        if not cells:
            continue
        if header is None:
            header = cells
            check_columns(name, len(header))
            twice = [cell for cell, times in Counter(header).items() if cell and times > 1]
            if twice:
                raise InvalidDataset(f"{name} has the column {twice[0]!r} more than once; rename one")
        elif len(cells) != len(header):
            yield BrokenRow(
                repr(cells),
                f"line {reader.line_num}: must have {len(header)} cells as the header has, got {len(cells)}",
            )
        elif any("\udc80" <= character <= "\udcff" for cell in cells if not cell.isascii() for character in cell):
            yield BrokenRow(repr(cells), f"line {reader.line_num}: not UTF-8; {RECODE}")
        else:
            yield dict(zip(header, cells, strict=True))
