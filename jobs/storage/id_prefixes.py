"""Prefixes of ids: in sorted order the ids with a prefix are contiguous, so a range finds them."""

from collections.abc import Callable
from uuid import UUID

from tuneyard_wire.id_prefixes import RULE, is_prefix

DIGITS = 32


def id_range(prefix: str) -> tuple[UUID, UUID]:
    """The least and the greatest id with this prefix. Raises ValueError for an invalid prefix."""
    if not is_prefix(prefix):
        raise ValueError(RULE)
    digits = prefix.replace("-", "")
    return UUID(digits.ljust(DIGITS, "0")), UUID(digits.ljust(DIGITS, "f"))


def find_offset(count: int, id_at: Callable[[int], UUID | None], greatest: UUID) -> int:
    """Bisect a list of ids, greatest first, for the index of the first one that is not above `greatest`.

    Args:
        count: Length of the list.
        id_at: The id at an index; None beyond the end, as the list may have become shorter.
    """
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        found = id_at(middle)
        if found is not None and found > greatest:
            low = middle + 1
        else:
            high = middle
    return low
