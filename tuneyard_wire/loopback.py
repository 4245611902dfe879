"""Whether an address is one of this machine, which no proxy stands before."""

from ipaddress import ip_address
from urllib.parse import urlsplit


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
