"""Checks the URL of a service, and hides its password in messages."""

import re
from ipaddress import ip_address

import httpx

from tuneyard_client.errors import ClientError

_MAX_PORT = 65535
_NOT_OF_HOST = re.compile(r"[\s%]")
_PASSWORD = re.compile(r"//[^/?#]*@")


def check_url(url: str, has_key: bool) -> str:
    """Return the URL of a service. Raises ClientError if no request can be sent to it.

    Args:
        has_key: An API key is sent too, in the header that a user name in the URL would take.
    """
    try:
        problem = _find_problem(httpx.URL(url), has_key)
    except (httpx.InvalidURL, ValueError) as error:
        problem = f"is not a URL: {error}" if isinstance(error, httpx.InvalidURL) else "is not a URL: invalid host"
    if problem:
        raise ClientError(f"{hide_password(repr(url))} {problem}; check --url or TUNEYARD_URL", code="invalid_url")
    return url


def hide_password(url: str) -> str:
    """The URL without anything that may be a user name and password."""
    return _PASSWORD.sub("//***@", url)


def _find_problem(url: httpx.URL, has_key: bool) -> str | None:
    if url.scheme not in ("http", "https"):
        return "is not a URL of a service; it must begin with http:// or https://"
    if not url.host or not _is_host(url.host):
        return "is not a URL: it names no valid host"
    if url.port is not None and not 0 < url.port <= _MAX_PORT:
        return f"is not a URL: a port is between 1 and {_MAX_PORT}"
    if url.query or url.fragment:
        return "must end with the host, the port or a path; leave out the ? or # and what follows"
    if url.userinfo and has_key:
        return "holds a user name, but an API key is set (TUNEYARD_API_KEY); give one of them"
    return None


def _is_host(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        is_name = bool(host.encode("idna"))  # as the resolver does; raises UnicodeError
        return is_name and not _NOT_OF_HOST.search(host)
    return True
