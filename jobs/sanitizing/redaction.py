"""Passwords in the addresses of servers, which must not be shown where the address is."""

import re

HIDDEN = "***"

# Looked for from `://` on, not from where a scheme might begin: that would be every letter of a text without end.
_PASSWORD = re.compile(r"((?<=[A-Za-z0-9+.-])://[^\s/?#:@]*:)[^\s/?#]*@")
_TOKEN = re.compile(r"(https?://)[^\s/?#:@]+@")  # git's way to give one: as the user's name, without a password


def hide_passwords(text: str) -> str:
    """The text with `***` in place of the password, or the token, in each URL in it."""
    return _TOKEN.sub(rf"\g<1>{HIDDEN}@", _PASSWORD.sub(rf"\g<1>{HIDDEN}@", text))
