"""A few rows as the model will read them, with what it learns of them marked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.planning.tokens import IGNORED, TokenRows

if TYPE_CHECKING:
    from datasets import Dataset

PLACES = (0.1, 0.5, 0.9)  # a short row, a middling one, a long one
MAX_CHARACTERS = 4000  # shown of a row


def show_samples(dataset: "Dataset", rows: TokenRows, tokenizer_path: Path) -> list[dict[str, Any]]:
    """Up to three rows: `row` (its number), `tokens`, `supervised_tokens`, and `parts`, the text cut where it changes
    between read and learned; `is_cut` when only the first 4,000 characters are shown."""
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
