"""Splits rows into training and held-out rows by a hash of their content."""

import hashlib
import json
from operator import itemgetter

from sft.data.data_files import BrokenRow, NumberedRow, Row


def split_rows(
    rows: list[NumberedRow], validation_split: float = 0.0, max_samples: int | None = None, seed: int = 0
) -> tuple[list[NumberedRow], list[NumberedRow]]:
    """Split into training rows and held-out rows, in the file's order.

    `max_samples` selects by a seeded hash of each row's content, the held-out share by an unseeded one: equal rows
    stay together, and adding rows moves none to the other split. With two or more different rows neither is empty.
    """
    if max_samples is not None and len(rows) > max_samples:
        by_hash = sorted(rows, key=lambda item: hash_row(item[1], str(seed)))
        rows = sorted(by_hash[:max_samples], key=itemgetter(0))
    hashes = {number: hash_row(row) for number, row in rows}
    values = set(hashes.values())
    if not validation_split or len(values) < 2:
        return rows, []
    held_out = {value for value in values if value < validation_split} or {min(values)}
    if held_out == values:
        held_out.remove(max(values))
    train = [item for item in rows if hashes[item[0]] not in held_out]
    return train, [item for item in rows if hashes[item[0]] in held_out]


def hash_row(row: Row | BrokenRow, salt: str = "") -> float:
    """Hash a row's content (and `salt`) to a number in [0, 1).

    Null columns do not count: Parquet has one for each column that another row has.
    """
    values = row if isinstance(row, BrokenRow) else {name: value for name, value in row.items() if value is not None}
    try:
        text = salt + json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    except RecursionError:  # nested almost too deep to be read
        text = salt + str(sorted(row))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
