"""Reads a data file in blocks of about a megabyte, so that a file of any size takes constant memory.

Finding the blocks is quick and is done in order; reading the rows of one (`read`) can be done in any process. The
blocks of a file depend on its content alone.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sft.confinement import step
from sft.data.csv_rows import read_csv
from sft.data.data_stream import open_data, read_text_blocks
from sft.data.file_content import count_parquet_rows
from sft.data.json_rows import is_list, is_whole_list, read_list
from sft.data.parts import list_parts
from sft.data.rows import NumberedRow, Row, drop_nulls, read_line
from sft.errors import InvalidDataset

BLOCK_ROWS = 512  # of a file whose rows are no lines


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
            yield from _slice(path, read_csv(path.name, stream))
        elif suffix == ".json":
            yield from _read_json(path)
        else:
            yield from _read_lines(path, stream)


def count_lines(content: bytes) -> int:
    """Number of lines of content that ends with a line, as `splitlines` makes them (old Mac lines end in \\r)."""
    alone = content.count(b"\r") - content.count(b"\r\n") if b"\r" in content else 0
    return content.count(b"\n") + alone


def _read_lines(path: Path, stream: BinaryIO) -> Iterator[Block]:
    first, is_begun = 1, False
    what, size = f"dataset_name: to read {path.name}", path.stat().st_size
    for content in read_text_blocks(path.name, stream):
        if not is_begun and content.strip():
            is_begun = True
            if content.lstrip()[:1] == b"[" and path.suffix.lower() == ".jsonl":
                with open_data(path) as (again, _), step(what, size):
                    is_misnamed = is_whole_list(path.name, again)  # else rows that are no objects
                if is_misnamed:
                    yield from _read_json_list(path)
                    return
        yield LineBlock(path.name, first, content)
        first += count_lines(content)


def _read_json(path: Path) -> Iterator[Block]:
    with open_data(path) as (stream, _), step(f"dataset_name: to read {path.name}", path.stat().st_size):
        has_list = is_list(path.name, stream)
    if has_list:
        yield from _read_json_list(path)
        return
    with open_data(path) as (stream, _):
        yield from _read_lines(path, stream)


def _read_json_list(path: Path) -> Iterator[Block]:
    with open_data(path) as (stream, _):
        yield from _slice(path, read_list(path.name, stream))


def _slice(path: Path, rows: Iterator[NumberedRow]) -> Iterator[Block]:
    what, size = f"dataset_name: to read {path.name}", path.stat().st_size
    while True:
        with step(what, size):
            block = list(islice(rows, BLOCK_ROWS))
        if not block:
            return
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
