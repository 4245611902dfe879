"""The first characters of an id, which may stand for it."""

import re

_HEX = "[0-9A-Fa-f]"
PATTERN = (  # with dashes as in an id, or without
    f"^({_HEX}{{4,32}}|{_HEX}{{8}}-({_HEX}{{0,4}}|{_HEX}{{4}}-({_HEX}{{0,4}}|{_HEX}{{4}}-"
    f"({_HEX}{{0,4}}|{_HEX}{{4}}-{_HEX}{{0,12}}))))$"
)
RULE = "must be the first 4 or more characters of an id"


def is_prefix(text: str) -> bool:
    """Whether this is a valid prefix: at least four hexadecimal digits."""
    return re.fullmatch(PATTERN, text) is not None
