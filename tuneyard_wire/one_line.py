"""Escape untrusted text for logs and terminals: one line without control characters."""

import re

# C0 but tab, C1, line and paragraph separators, direction overrides, invisible characters, surrogates.
_CONTROL = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def escape(text: str) -> str:
    r"""Escape control characters as in Python (`\n`), so that the text is one line."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
