"""Reads JSON, JSONL, CSV and Parquet files into numbered rows."""

import io
from functools import partial
from pathlib import Path

from sft.confinement import step
from sft.data.data_stream import BOM, MAX_LINE_BYTES, is_utf8, open_data, refuse_line
from sft.data.parts import list_parts
from sft.data.row_blocks import read_blocks, read_file_blocks
from sft.data.rows import NumberedRow
from sft.errors import InvalidDataset


def read_rows(path: Path) -> list[NumberedRow]:
    """All rows of a `.json` (one list), `.jsonl`, `.parquet` or `.csv` file, in order, in memory.

    A line that is not a JSON object and a ragged line of a CSV file become a `BrokenRow`. Parquet has a null for each
    nested key that another row has; these are left out, so that the rows equal those of JSONL.

    Raises:
        InvalidDataset: the file as a whole is missing, of another kind, empty, or malformed.
    """
    rows = [row for block in read_blocks(path) for row in block.read()]
    if not rows:
        raise InvalidDataset(f"{path.name} has no rows")
    return rows


def count_rows(path: Path) -> int:
    """Number of rows that `read_rows` returns, broken ones included; 0 for an empty file. Raises as `read_rows`."""
    return sum(map(count_file_rows, list_parts(path)))


def count_file_rows(path: Path) -> int:
    """`count_rows` of this file alone, if it is one of several parts."""
    rows = _count_lines(path)
    if rows is not None:
        return rows
    rows = 0
    for block in read_file_blocks(path):
        with step(f"dataset_name: to read {path.name}", path.stat().st_size):
            rows += block.count_rows()
    return rows


def _count_lines(path: Path) -> int | None:
    """Number of lines that are not blank, quickly; None unless it is a JSONL file in UTF-8 whose rows they are."""
    with open_data(path) as (stream, suffix):
        if suffix != ".jsonl" or not isinstance(stream, io.BufferedReader) or not is_utf8(stream):
            return None
        rows = 0
        if stream.peek(len(BOM)).startswith(BOM):
            stream.read(len(BOM))
        with step(f"dataset_name: to read {path.name}", path.stat().st_size):
            for line in iter(partial(stream.readline, MAX_LINE_BYTES + 1), b""):
                if len(line) > MAX_LINE_BYTES:
                    raise refuse_line(path.name)
                if not line.isspace():
                    if not rows and line.lstrip()[:1] == b"[":  # a JSON list perhaps
                        return None
                    rows += sum(1 for part in line.splitlines() if part.strip()) if b"\r" in line else 1
        return rows
