"""Shows a few rendered rows with their supervised parts marked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.planning.tokens import IGNORED, TokenRows

if TYPE_CHECKING:
    from datasets import Dataset

PLACES = (0.1, 0.5, 0.9)  # quantiles of the length: a short, a medium and a long row
MAX_CHARACTERS = 4000  # shown per row


def show_samples(dataset: "Dataset", rows: TokenRows, tokenizer_path: Path) -> list[dict[str, Any]]:
    """Render up to three rows.

    Each has `row` (its number), `tokens`, `supervised_tokens`, and `parts`, the text split into supervised and other
    parts; `is_cut` if only the first 4,000 characters are shown.
    """
    from sft.models.loading import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    order = np.argsort(rows.lengths, kind="stable")
    chosen = dict.fromkeys(int(order[int(place * (len(order) - 1))]) for place in PLACES)
    return [_show(dataset[index], tokenizer) for index in chosen]


def _show(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    ids, learned = row["input_ids"], [label != IGNORED for label in row["labels"]]
    parts: list[dict[str, Any]] = []
    start, left = 0, MAX_CHARACTERS
    for end in range(1, len(ids) + 1):
        if end < len(ids) and learned[end] == learned[start]:
            continue
        text = tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if left > 0:
            parts.append({"text": text[:left], "supervised": learned[start]})
        left -= len(text)
        start = end
    return {
        "row": row["row"],
        "tokens": len(ids),
        "supervised_tokens": sum(learned[1:]),
        "parts": parts,
        "is_cut": left < 0,
    }
