"""Addresses of this machine, which no proxy may stand before."""

from ipaddress import ip_address
from urllib.parse import urlsplit

HOSTS = ("localhost", "127.0.0.1", "::1")


def is_on_this_machine(url: str) -> bool:
    """Whether this URL's host is a loopback address or a name of one. False for what is not a URL."""
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
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
