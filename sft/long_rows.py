"""Warns about rows that are longer than max_batch_tokens."""

from collections.abc import Sequence


def warn_of_long_rows(lengths: Sequence[int], max_tokens: int) -> list[str]:
    """One warning about rows that are longer than `max_tokens`, if there are any."""
    longer = [length for length in lengths if length > max_tokens]
    if not longer:
        return []
    return [
        f"{len(longer)} rows are longer than max_batch_tokens {max_tokens} and each is a batch alone, of up to "
        f"{max(longer)} tokens; raise it to {max(longer)}, or lower max_seq_length"
    ]
