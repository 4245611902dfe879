"""Ids that begin alike: in order of size they lie side by side, so that two comparisons find them."""

import re
from collections.abc import Callable
from uuid import UUID

_HEX = "[0-9A-Fa-f]"
PATTERN = (  # with dashes where an id has them, or without any
    f"^({_HEX}{{4,32}}|{_HEX}{{8}}-({_HEX}{{0,4}}|{_HEX}{{4}}-({_HEX}{{0,4}}|{_HEX}{{4}}-"
    f"({_HEX}{{0,4}}|{_HEX}{{4}}-{_HEX}{{0,12}}))))$"
)
RULE = "must be the first 4 or more characters of an id"
DIGITS = 32


def is_prefix(text: str) -> bool:
    """Whether an id can begin so; at least four hexadecimal digits."""
    return re.fullmatch(PATTERN, text) is not None


def id_range(prefix: str) -> tuple[UUID, UUID]:
    """The least and the greatest id that begin so. Raises ValueError for what `is_prefix` refuses."""
    if not is_prefix(prefix):
        raise ValueError(RULE)
    digits = prefix.replace("-", "")
    return UUID(digits.ljust(DIGITS, "0")), UUID(digits.ljust(DIGITS, "f"))


def find_offset(count: int, id_at: Callable[[int], UUID | None], greatest: UUID) -> int:
    """Where in a list of ids, greatest first, the first one stands that is not above `greatest`.

    Args:
        count: Length of the list.
        id_at: The id at a place; None behind the end, since the list may have become shorter.
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
