"""Reads JSON, JSONL, CSV and Parquet files into numbered rows; a row that can't be read does not fail the file."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from sft.confinement import step
from sft.data.fields import parse_json
from sft.data.file_content import COMPRESSED_SUFFIXES, RECODE, check_kind, explain_bytes, is_utf8, read_utf8
from sft.errors import InvalidDataset

DELIMITERS = ";\t|"  # accepted besides the comma
MOST_COLUMNS = 10_000

Row = dict[str, Any]


class BrokenRow(NamedTuple):
    """A row that can't be read: its text in the file, and the reason."""

    text: str
    reason: str


NumberedRow = tuple[int, Row | BrokenRow]  # the number counts from 1: the line of a JSONL file, else the record


def read_rows(path: Path) -> list[NumberedRow]:
    """The rows of a `.json` (one list), `.jsonl`, `.parquet` or `.csv` file, in order.

    A line that is not a JSON object and a ragged line of a CSV file become a `BrokenRow`. Parquet has a null for each
    nested key that another row has; these are left out, so that the rows equal those of JSONL.

    Raises:
        InvalidDataset: the file as a whole is missing, of another kind, empty, or malformed.
    """
    rows = _read(path)
    if not rows:
        raise InvalidDataset(f"{path.name} has no rows")
    return rows


def count_rows(path: Path) -> int:
    """Number of rows that `read_rows` returns, broken ones included; 0 for an empty file. Raises as `read_rows`."""
    if path.suffix.lower() == ".jsonl" and path.is_file():
        check_kind(path)
        with _reading(path), path.open("rb") as file:
            lines = filter(bytes.strip, file)
            first = next(lines, b"").removeprefix(b"\xef\xbb\xbf")
            if is_utf8(path) and first.strip() and not _begins_list(first):
                return sum(_count_lines(line) for line in (first, *lines))
    return len(_read(path))


def shorten(value: Any) -> str:
    """`repr`, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _reading(path: Path) -> AbstractContextManager[None]:
    return step(f"dataset_name: to read {path.name}", path.stat().st_size)


def _read(path: Path) -> list[NumberedRow]:
    readers: dict[str, Callable[[Path], list[NumberedRow]]] = {
        ".json": _read_json,
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() in COMPRESSED_SUFFIXES and path.is_file():
        check_kind(path)
        raise InvalidDataset(f"{path.name} is an archive by its name; unpack it first")
    if path.suffix.lower() not in readers:
        raise InvalidDataset(f"{path.name} must be one of {', '.join(readers)}, got {path.suffix or 'no suffix'}")
    if not path.is_file():
        raise InvalidDataset(f"{path} is not a file")
    check_kind(path)
    with _reading(path):
        return readers[path.suffix.lower()](path)


def _read_json(path: Path) -> list[NumberedRow]:
    content = read_utf8(path)
    if not content.strip():
        return []
    try:
        rows = parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{path.name} is {explain_bytes(error)}") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # one object a line under the wrong suffix
            return _read_lines(content)
        raise InvalidDataset(f"{path.name} line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, very deep nesting
        raise InvalidDataset(f"{path.name} can't be read as JSON: {error}") from error
    if isinstance(rows, dict):
        keys = shorten(list(rows))
        raise InvalidDataset(f"{path.name} must hold a list of rows, or an object a line, got one object with {keys}")
    if not isinstance(rows, list):
        raise InvalidDataset(f"{path.name} must hold a list of rows, got {type(rows).__name__}")
    return [(number, _check_object(row, repr(row))) for number, row in enumerate(rows, 1)]


def _read_jsonl(path: Path) -> list[NumberedRow]:
    content = read_utf8(path)
    if _begins_list(content):  # a JSON list under the wrong suffix, or rows that are not objects
        try:
            return _read_json(path)
        except InvalidDataset:
            pass
    return _read_lines(content)


def _count_lines(line: bytes) -> int:
    """Number of rows in what iterating a file yields as one line: old Mac lines end in a carriage return."""
    return sum(1 for part in line.splitlines() if part.strip()) if b"\r" in line else 1


def _begins_list(content: bytes) -> bool:
    return content.lstrip()[:1] == b"["


def _read_lines(content: bytes) -> list[NumberedRow]:
    return [(number, _read_line(line)) for number, line in enumerate(content.splitlines(), 1) if line.strip()]


def _read_line(line: bytes) -> Row | BrokenRow:
    shown = line.decode("utf-8", "replace")
    try:
        return _check_object(parse_json(line.decode("utf-8")), shown)
    except UnicodeDecodeError as error:
        return BrokenRow(shown, explain_bytes(error))
    except json.JSONDecodeError as error:
        return BrokenRow(shown, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return BrokenRow(shown, f"not JSON: {error}")


def _check_object(row: Any, text: str) -> Row | BrokenRow:
    return row if isinstance(row, dict) else BrokenRow(text, f"must be an object, got {shorten(row)}")


def _read_csv(path: Path) -> list[NumberedRow]:
    text = read_utf8(path).decode("utf-8", "surrogateescape")  # a byte that is not UTF-8 breaks only its row
    limit = csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than a long document
    try:
        return list(enumerate(_read_records(io.StringIO(text, newline=""), _find_delimiter(text), path.name), 1))
    finally:
        csv.field_size_limit(limit)


def _find_delimiter(text: str) -> str:
    """The comma, unless the header has none and contains exactly one of DELIMITERS."""
    header = text.lstrip("\r\n").partition("\n")[0]
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
            _check_columns(name, len(header))
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


def _read_parquet(path: Path) -> list[NumberedRow]:
    import pyarrow
    import pyarrow.parquet

    count_parquet_rows(path)
    try:
        table = pyarrow.parquet.read_table(path)
        rows: list[Row] = table.to_pylist(maps_as_pydicts="strict")
    except MemoryError:  # Arrow's own is one too
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidDataset(f"{path.name} is not a Parquet file: {error}") from error
    if len(set(table.column_names)) < len(table.column_names):
        raise InvalidDataset(f"{path.name} has two columns of one name: {', '.join(table.column_names)}")
    for name in (field.name for field in table.schema if pyarrow.types.is_nested(field.type)):
        for row in rows:
            row[name] = _drop_nulls(row[name])
    return list(enumerate(rows, 1))


def count_parquet_rows(path: Path) -> int:
    """Number of rows in a Parquet file's metadata. Raises InvalidDataset if it is inconsistent or too wide."""
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_metadata(path)
    except MemoryError:  # Arrow's own is one too
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidDataset(f"{path.name} is not a Parquet file: {error}") from error
    _check_columns(path.name, found.num_columns)
    rows, grouped = found.num_rows, sum(found.row_group(number).num_rows for number in range(found.num_row_groups))
    if rows != grouped:
        raise InvalidDataset(
            f"{path.name} says that it has {rows} rows, and its row groups have {grouped}; write it again"
        )
    return int(rows)


def _check_columns(name: str, count: int) -> None:
    if count > MOST_COLUMNS:
        raise InvalidDataset(
            f"{name} has {count} columns, and no more than {MOST_COLUMNS} are read; leave out those that no row needs"
        )


def _drop_nulls(value: Any) -> Any:
    """Remove keys whose value is null, at any depth; a null in a list stays."""
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    return [_drop_nulls(item) for item in value] if isinstance(value, list) else value
