"""Which rows are learned from and which are held out, decided by the rows' content alone."""

import hashlib
import json
from operator import itemgetter

from sft.formats import Row

NumberedRow = tuple[int, Row]


def split_rows(
    rows: list[Row], validation_split: float = 0.0, max_samples: int | None = None, seed: int = 0
) -> tuple[list[NumberedRow], list[NumberedRow]]:
    """Rows to learn from and rows held out, each with its number (from 1), in the file's order.

    `max_samples` picks by a seeded hash of each row's content, the held-out share by an unseeded one: equal rows
    stay together, and adding rows moves none across. With two rows and more neither side is left empty.
    """
    numbered = list(enumerate(rows, 1))
    if max_samples is not None and len(numbered) > max_samples:
        by_hash = sorted(numbered, key=lambda item: hash_row(item[1], str(seed)))
        numbered = sorted(by_hash[:max_samples], key=itemgetter(0))
    if not validation_split or len(numbered) < 2:
        return numbered, []
    hashes = {number: hash_row(row) for number, row in numbered}
    held_out = {number for number, value in hashes.items() if value < validation_split}
    if not held_out:
        held_out = {min(hashes, key=hashes.__getitem__)}
    elif len(held_out) == len(numbered):
        held_out.remove(max(hashes, key=hashes.__getitem__))
    train = [item for item in numbered if item[0] not in held_out]
    return train, [item for item in numbered if item[0] in held_out]


def hash_row(row: Row, salt: str = "") -> float:
    """A number in [0, 1) that depends on the row's content (and `salt`) alone."""
    text = salt + json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
