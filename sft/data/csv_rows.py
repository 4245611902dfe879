"""Reads the rows of a CSV file one after another."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import BinaryIO

from sft.data.data_stream import read_text_blocks
from sft.data.file_content import RECODE, check_columns
from sft.data.rows import BrokenRow, NumberedRow, Row
from sft.errors import InvalidDataset

DELIMITERS = ";\t|"  # accepted besides the comma
READ_ROWS = 512  # at once


def read_csv(name: str, stream: BinaryIO) -> Iterator[NumberedRow]:
    """Yield the records below the header, numbered from 1; one that can't be read is a `BrokenRow`.

    Raises:
        InvalidDataset: the header has a name twice, or too many of them.
    """
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
            rows = list(islice(records, READ_ROWS))
        finally:
            csv.field_size_limit(limit)
        if not rows:
            return
        yield from rows


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
