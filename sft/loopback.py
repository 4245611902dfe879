"""Loopback addresses, which must never be reached through a proxy."""

from ipaddress import ip_address
from urllib.parse import urlsplit

HOSTS = ("localhost", "127.0.0.1", "::1")


def is_on_this_machine(url: str) -> bool:
    """Whether a URL's host is a loopback address or a name of one. False for an invalid URL."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def bracket(host: str) -> str:
    """A host as written in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
