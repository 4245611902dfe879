"""Prefixes of ids, which may be given instead of an id."""

import re

_HEX = "[0-9A-Fa-f]"
PATTERN = (  # with dashes as in an id, or without any
    f"^({_HEX}{{4,32}}|{_HEX}{{8}}-({_HEX}{{0,4}}|{_HEX}{{4}}-({_HEX}{{0,4}}|{_HEX}{{4}}-"
    f"({_HEX}{{0,4}}|{_HEX}{{4}}-{_HEX}{{0,12}}))))$"
)
RULE = "must be the first 4 or more characters of an id"


def is_prefix(text: str) -> bool:
    """Whether a text is a valid prefix: at least four hexadecimal digits."""
    return re.fullmatch(PATTERN, text) is not None
