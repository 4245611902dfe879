"""Reports what a data file holds before any model is chosen: its format, its rows, the bad ones and the duplicates."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from sft.data.formats import detect_format, read_row
from sft.data.row_blocks import read_file_blocks
from sft.data.row_report import SplitReport
from sft.data.rows import BrokenRow, NumberedRow, Row
from sft.data.splits import write_row
from sft.errors import InvalidDataset

AUTO = "auto"
COLUMNS_SHOWN = 50
COLUMN_CHARACTERS = 60
REASONS_SHOWN = 20
ROWS_SHOWN = 20


@dataclass(frozen=True)
class FileReport:
    """What is in a data file.

    Attributes:
        rows: all of them; `bad` of them can't be read in the format.
        format: `alpaca`, `chat` or `completion`; `auto` if its rows are of several; None if none of these fits any row,
            as of completions in a column that `dataset_text_field` must name.
        columns: names of the first readable row's columns, at most 50.
        bad_rows: number and reason of the first bad rows.
        reasons: why rows are bad, each with its `count` and the first `rows`.
        duplicates: rows whose content an earlier row has.
    """

    rows: int
    bad: int
    format: str | None
    columns: tuple[str, ...]
    bad_rows: tuple[tuple[int, str], ...]
    reasons: tuple[dict[str, Any], ...]
    duplicates: int


def inspect_file(path: Path, on_rows: Callable[[int], None] = lambda rows: None) -> FileReport:
    """Read every row of a `.json`, `.jsonl`, `.parquet` or `.csv` file, in constant memory but for 8 bytes a row.

    Args:
        on_rows: called with the number of rows that were read so far.

    Raises:
        InvalidDataset: the file as a whole is malformed, is empty, or none of its rows is an object.
    """
    reading = _Tally()
    for block in read_file_blocks(path):
        reading.take(block.read())
        on_rows(reading.report.counts["rows"])
    return reading.finish(path.name)


class _Tally:
    def __init__(self) -> None:
        self.report = SplitReport()
        self._formats: Counter[str] = Counter()
        self._columns: tuple[str, ...] = ()
        self._hashes: list[Any] = []
        self._is_object_seen = False

    def take(self, rows: list[NumberedRow]) -> None:
        digests = [int.from_bytes(blake2b(_write(row), digest_size=8).digest(), "big") for _, row in rows]
        self._hashes.append(np.array(digests, np.uint64))
        self.report.counts["rows"] += len(rows)
        for number, row in rows:
            try:
                self._formats[self._check(row)] += 1
            except InvalidDataset as error:
                self.report.note("invalid", number, str(error))

    def _check(self, row: Row | BrokenRow) -> str:
        if isinstance(row, BrokenRow):
            raise InvalidDataset(row.reason)
        if not self._is_object_seen:
            self._is_object_seen = True
            self._columns = tuple(str(name)[:COLUMN_CHARACTERS] for name in [*row][:COLUMNS_SHOWN])
        found = detect_format(row)
        read_row(row, found)
        return found

    def finish(self, name: str) -> FileReport:
        counts, notes = self.report.counts, self.report.notes["invalid"]
        if not counts["rows"]:
            raise InvalidDataset(f"{name} has no rows")
        if not self._is_object_seen:
            number, reason = notes[0]  # type: ignore[misc]  # invalid rows have a reason
            raise InvalidDataset(f"{name} has no row that can be read; row {number}: {reason}")
        different = len(np.unique(np.concatenate(self._hashes)))
        formats = [*self._formats]
        return FileReport(
            rows=counts["rows"],
            bad=counts["invalid"],
            format=None if not formats else formats[0] if len(formats) == 1 else AUTO,
            columns=self._columns,
            bad_rows=tuple((number, reason) for number, reason in notes[:ROWS_SHOWN]),  # type: ignore[misc]
            reasons=tuple([*self.report.reasons.values()][:REASONS_SHOWN]),
            duplicates=counts["rows"] - different,
        )


def _write(row: Row | BrokenRow) -> bytes:
    return write_row(row).encode("utf-8", "surrogatepass")
