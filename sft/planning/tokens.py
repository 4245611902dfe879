"""Statistics of prepared rows: lengths, supervised tokens, duplicates, overlap with held-out rows."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
FIRST_EDGE = 32  # tokens; each further edge of the histogram is twice the previous one
MAX_LISTED = 100  # row numbers listed at most
Ints = NDArray[np.int64]


class TokenRows(NamedTuple):
    """The prepared rows of a split. `numbers` are those in the data file, from 1; all arrays are (rows,)."""

    lengths: Ints
    supervised: Ints  # supervised tokens; the first token of a row does not count, as it is never predicted
    prompts: list[bytes]  # the ids before the first supervised one
    texts: list[bytes]  # all ids
    numbers: Ints


def read_lengths(dataset: "Dataset") -> Ints:
    """Read only the lengths, (rows,), not the tokens."""
    lengths: Ints = dataset.with_format("arrow")[:].column("length").to_numpy().astype(np.int64)
    return lengths


def read_tokens(dataset: "Dataset") -> TokenRows:
    """Read the columns of `PreparedData.load_train()` or `load_eval()` without converting them to Python lists."""
    table = dataset.with_format("arrow")[:]
    ids, labels = (table.column(name).combine_chunks() for name in ("input_ids", "labels"))
    bounds = ids.offsets.to_numpy().astype(np.int64)
    flat_ids, learned = ids.values.to_numpy(), labels.values.to_numpy() != IGNORED
    learned[bounds[:-1]] = False
    before = np.concatenate([[0], np.cumsum(learned)])  # supervised tokens before each position, (tokens + 1,)
    supervised = before[bounds[1:]] - before[bounds[:-1]]
    where = np.flatnonzero(learned)
    firsts = where[before[bounds[:-1]]]  # (rows,); every prepared row has a supervised token
    pieces = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), firsts.tolist(), strict=True))
    return TokenRows(
        np.diff(bounds),
        supervised,
        [flat_ids[start:first].tobytes() for start, _, first in pieces],
        [flat_ids[start:end].tobytes() for start, end, _ in pieces],
        table.column("row").to_numpy().astype(np.int64),
    )


def describe_tokens(rows: TokenRows) -> dict[str, Any]:
    """Describe lengths in tokens: extremes, percentiles, and a histogram with bins `from <= length < to`."""
    lengths = rows.lengths
    edges = [0, FIRST_EDGE]
    while edges[-1] <= lengths.max():
        edges.append(2 * edges[-1])
    counts, _ = np.histogram(lengths, edges)
    bins = [
        {"from": start, "to": end, "rows": int(count)}
        for start, end, count in zip(edges, edges[1:], counts, strict=False)
    ]
    percentiles = {f"p{share}": round(float(np.percentile(lengths, share)), 1) for share in (50, 90, 95, 99)}
    return {
        "min": int(lengths.min()),
        "mean": round(float(lengths.mean()), 1),
        **percentiles,
        "max": int(lengths.max()),
        "histogram": bins,
    }


def find_duplicates(rows: TokenRows) -> list[int]:
    """Numbers of the rows whose tokens equal those of an earlier row; one that is taken again is the same row."""
    seen: set[bytes] = set()
    numbers: set[int] = set()
    found = []
    for number, text in zip(rows.numbers.tolist(), rows.texts, strict=True):
        if text in seen and number not in numbers:
            found.append(number)
        seen.add(text)
        numbers.add(number)
    return found


def find_overlap(train: TokenRows, held_out: TokenRows) -> tuple[list[int], list[int]]:
    """Numbers of the held-out rows that equal a training row, and of those with only the prompt of one."""
    texts, prompts = set(train.texts), {prompt for prompt in train.prompts if prompt}
    whole, asked = [], []
    for number, text, prompt in zip(held_out.numbers.tolist(), held_out.texts, held_out.prompts, strict=True):
        if text in texts:
            whole.append(number)
        elif prompt in prompts:
            asked.append(number)
    return whole, asked
