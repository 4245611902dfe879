"""Splits rows into training and held-out rows by a hash of their content."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from sft.data.rows import BrokenRow, NumberedRow, Row

TRAIN, EVAL, UNUSED = 0, 1, 2  # the side of a row
Sides = NDArray[np.uint8]
Hashes = NDArray[np.float64]
_WRITER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str)


def split_rows(
    rows: list[NumberedRow], validation_split: float = 0.0, max_samples: int | None = None, seed: int = 0
) -> tuple[list[NumberedRow], list[NumberedRow]]:
    """Split into training rows and held-out rows, in the file's order, by `choose_sides`."""
    hashes, ranks = hash_rows(rows, seed)
    sides = choose_sides(hashes, ranks, validation_split, max_samples)
    train, held_out = ([rows[place] for place in np.flatnonzero(sides == side)] for side in (TRAIN, EVAL))
    return train, held_out


def hash_rows(rows: list[NumberedRow], seed: int | None) -> tuple[Hashes, Hashes]:
    """Hashes of the rows' content without and with the seed, each (rows,); without a seed the second ones are 0."""
    texts = [write_row(row) for _, row in rows]
    plain = [_hash(text) for text in texts]
    seeded = [0.0] * len(texts) if seed is None else [_hash(f"{seed}{text}") for text in texts]
    return np.array(plain, np.float64), np.array(seeded, np.float64)


def choose_sides(hashes: Hashes, ranks: Hashes, validation_split: float, max_samples: int | None) -> Sides:
    """The side of each row, (rows,), given the two results of `hash_rows`.

    `max_samples` selects by a seeded hash of each row's content, the held-out share by an unseeded one: equal rows
    stay together, and adding rows moves none to the other split. With two or more different rows neither is empty.
    """
    sides = np.full(len(hashes), TRAIN, np.uint8)
    if max_samples is not None and len(hashes) > max_samples:
        sides[np.argsort(ranks, kind="stable")[max_samples:]] = UNUSED
    values = np.unique(hashes[sides == TRAIN])
    if not validation_split or len(values) < 2:
        return sides
    held_out = values[values < validation_split]
    if not len(held_out):
        held_out = values[:1]
    if len(held_out) == len(values):
        held_out = held_out[:-1]
    sides[(sides == TRAIN) & (hashes <= held_out[-1])] = EVAL
    return sides


def write_row(row: Row | BrokenRow) -> str:
    """The row's content as text; null columns do not count, as Parquet has one for each column of another row."""
    values = row if isinstance(row, BrokenRow) else {name: value for name, value in row.items() if value is not None}
    try:
        return _WRITER.encode(values)
    except RecursionError:  # nested almost too deep to be read
        return str(sorted(row))


def _hash(text: str) -> float:
    """Hash a text to a number in [0, 1)."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
