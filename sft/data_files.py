"""Data files as numbered rows: JSON, JSONL, CSV and Parquet. What can't be read is one row's fault, not the file's."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sft.errors import InvalidDataset

Row = dict[str, Any]


class BrokenRow(NamedTuple):
    """A row that can't be read: what stands in the file, and why."""

    text: str
    reason: str


NumberedRow = tuple[int, Row | BrokenRow]  # the number counts from 1: the line of a JSONL file, else the record


def read_rows(path: Path) -> list[NumberedRow]:
    """The rows of a `.json` (one list), `.jsonl`, `.parquet` or `.csv` file, in order.

    A line that is no JSON object and a ragged line of a CSV file come back as a `BrokenRow`.

    Raises:
        InvalidDataset: the file as a whole is missing, of another kind, empty, or malformed.
    """
    rows = _read(path)
    if not rows:
        raise InvalidDataset(f"{path.name} has no rows")
    return rows


def count_rows(path: Path) -> int:
    """How many rows `read_rows` gives, those that can't be read included; 0 for an empty file. Raises as it does."""
    if path.suffix.lower() == ".jsonl" and path.is_file():
        with path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    return len(_read(path))


def shorten(value: Any) -> str:
    """`repr`, at most 60 characters of it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _read(path: Path) -> list[NumberedRow]:
    readers: dict[str, Callable[[Path], list[NumberedRow]]] = {
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise InvalidDataset(f"{path.name} must be one of {', '.join(readers)}, got {path.suffix or 'no suffix'}")
    if not path.is_file():
        raise InvalidDataset(f"{path} is not a file")
    return readers[path.suffix.lower()](path)


def _read_json(path: Path) -> list[NumberedRow]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{path.name} must be UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # one object a line under the wrong suffix
            return _read_jsonl(path)
        raise InvalidDataset(f"{path.name} line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise InvalidDataset(f"{path.name} can't be read as JSON: {error}") from error
    if not isinstance(rows, list):
        raise InvalidDataset(f"{path.name} must hold a list of rows, got {type(rows).__name__}")
    return [(number, _check_object(row, repr(row))) for number, row in enumerate(rows, 1)]


def _read_jsonl(path: Path) -> list[NumberedRow]:
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    return [(number, _read_line(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _read_line(line: bytes) -> Row | BrokenRow:
    shown = line.decode("utf-8", "replace")
    try:
        return _check_object(json.loads(line.decode("utf-8")), shown)
    except UnicodeDecodeError as error:
        return BrokenRow(shown, f"not UTF-8: {error.reason} at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return BrokenRow(shown, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BrokenRow(shown, f"not JSON: {error}")


def _check_object(row: Any, text: str) -> Row | BrokenRow:
    return row if isinstance(row, dict) else BrokenRow(text, f"must be an object, got {shorten(row)}")


def _read_csv(path: Path) -> list[NumberedRow]:
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")  # a byte that is no UTF-8 spoils its row alone
    limit = csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than a long document
    try:
        return list(enumerate(_read_records(io.StringIO(text, newline="")), 1))
    finally:
        csv.field_size_limit(limit)


def _read_records(lines: Iterable[str]) -> Iterator[Row | BrokenRow]:
    reader = csv.reader(lines, strict=True)
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
        elif len(cells) != len(header):
            yield BrokenRow(
                repr(cells),
                f"line {reader.line_num}: must have {len(header)} cells as the header has, got {len(cells)}",
            )
        elif any("\udc80" <= character <= "\udcff" for cell in cells if not cell.isascii() for character in cell):
            yield BrokenRow(repr(cells), f"line {reader.line_num}: not UTF-8")
        else:
            yield dict(zip(header, cells, strict=True))


def _read_parquet(path: Path) -> list[NumberedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidDataset(f"{path.name} is not a Parquet file: {error}") from error
    return list(enumerate(rows, 1))
