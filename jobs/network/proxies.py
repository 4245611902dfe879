"""Cleans up proxy variables: requests to this machine bypass proxies, and values that clients can't read are dropped.

Users behind a company's proxy set HTTP_PROXY, often without NO_PROXY. The clients of Prefect and MLflow would then ask
the proxy for 127.0.0.1. Servers elsewhere are still reached through the proxy.
"""

from collections.abc import Iterable, MutableMapping
from ipaddress import AddressValueError, IPv6Address

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
HOSTS = ("localhost", "127.0.0.1", "::1")  # this machine


def bypass_proxies(environment: MutableMapping[str, str], hosts: Iterable[str] = ()) -> list[str]:
    """Make every client that reads these variables reach this machine directly; returns a sentence per dropped value.

    Args:
        hosts: further names or addresses of this machine, such as the one the API listens on.
    """
    notes = _drop_unusable_proxies(environment)
    listed, unreadable = _read_exceptions(environment)
    notes += [
        f"NO_PROXY's entry {entry!r} is ignored: HTTP clients can't parse it; write an address without brackets"
        for entry in unreadable
    ]
    value = "*" if "*" in listed else ",".join(dict.fromkeys([*listed, *HOSTS, *hosts]))
    environment["NO_PROXY"] = environment["no_proxy"] = value  # clients read one or the other
    return notes


def _drop_unusable_proxies(environment: MutableMapping[str, str]) -> list[str]:
    """Drop proxies that httpx can't use: it raises when any client is created, so they would break all of Prefect."""
    notes = []
    for name in [name for name in environment if name.lower() in PROXY_VARIABLES]:
        problem = _find_problem(environment[name])
        if problem:
            del environment[name]
            notes.append(f"{name} is ignored, other hosts can't be reached through it: {problem}")
    return notes


def _find_problem(proxy: str) -> str | None:
    """Why httpx can't use this proxy, found by trying, as it depends on installed packages; None if it can."""
    if not proxy.strip():
        return None
    import httpx

    try:
        httpx.HTTPTransport(proxy=proxy if "://" in proxy else f"http://{proxy}", verify=False).close()
    except Exception as error:
        return str(error).split(". ")[0]
    return None


def _read_exceptions(environment: MutableMapping[str, str]) -> tuple[list[str], list[str]]:
    """Entries of NO_PROXY and no_proxy: those that clients understand, and the others."""
    text = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    usable: list[str] = []
    unreadable: list[str] = []
    for entry in entries:
        bare = entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry
        (usable if _is_readable(bare) else unreadable).append(bare)
    return usable, list(dict.fromkeys(unreadable))


def _is_readable(entry: str) -> bool:
    """Whether httpx can parse the entry, as it does whenever a client is created."""
    import httpx

    try:
        IPv6Address(entry)
    except AddressValueError:
        pass
    else:
        return True
    try:
        httpx.URL(entry if "://" in entry else f"all://*{entry}")
    except httpx.InvalidURL:
        return False
    return True


def bracket(host: str) -> str:
    """A host as written in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
