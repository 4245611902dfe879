"""Restricts webhooks to public addresses and allowed networks (protection against SSRF).

The address of the connection is checked: a name is resolved once, each of its addresses is checked, and the connection
is made to one that passed, so a name that resolves differently the next time (DNS rebinding) changes nothing.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

import httpcore

from sft.errors import InvalidConfig

MOST_BYTES = 256 * 1024  # that a receiver may send before the response's head is complete, such as endless 1xx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Public according to the registries, but internal: cloud metadata endpoints, 6to4 relays, blocks reserved since.
_CLOSED_V4 = [
    IPv4Network(text) for text in ("0.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24")
]
_GLOBAL_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = [IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_NAT64 = IPv6Network("64:ff9b::/96")


class ForbiddenTarget(InvalidConfig):
    """The webhook's address is neither public nor allowed."""

    code = "forbidden_webhook_target"


def unwrap(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one (v4-mapped, NAT64), or the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def may_connect(address: Address, allowed: Iterable[Network]) -> bool:
    """Whether an address is public unicast or in one of the allowed networks."""
    address = unwrap(address)
    return any(address in network for network in allowed) or _is_public(address)


def _is_public(address: Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    return address in _GLOBAL_V6 and not any(address in network for network in _CLOSED_V6)


def check_target(url: str, allowed: Iterable[Network]) -> None:
    """Refuse a URL whose host is `localhost` or an address, in any notation, that is not allowed.

    Other names are checked when the connection is made.

    Raises:
        ForbiddenTarget: naming the field, the value and the remedy.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    addresses = _spelled_out(host)
    if addresses and not any(may_connect(address, allowed) for address in addresses):
        address = unwrap(addresses[0])
        raise ForbiddenTarget(
            f"webhook_url: {address} is not a public address; to allow it, set TUNEYARD_WEBHOOK_ALLOW={address} (or a "
            f"network such as 10.0.0.0/8) and restart the service and its stack, got {url!r}"
        )


def _spelled_out(host: str) -> list[Address]:
    """Addresses of a host that needs no lookup: an address in any notation, or localhost."""
    if host == "localhost" or host.endswith(".localhost"):
        return [IPv4Address("127.0.0.1"), IPv6Address("::1")]
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass
    try:
        return [IPv4Address(socket.inet_aton(host))]  # 2130706433, 0x7f.1, 017700000001, as the resolver reads them
    except (OSError, ValueError):
        return []


class GuardedNetwork(httpcore.SyncBackend):
    """Connects to allowed addresses only, with one time limit for everything. Use each instance once.

    `connect_tcp` raises ForbiddenTarget if no address of the host is allowed.
    """

    def __init__(
        self, allowed: Iterable[Network], timeout_seconds: float, enter: Callable[[Address], None] = lambda _: None
    ) -> None:
        """`enter` is called with each address before the connection is made, and may raise."""
        self._enter = enter
        self._allowed = tuple(allowed)
        self._deadline = time.monotonic() + timeout_seconds

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        problem: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in self._resolve(host, port):
            self._enter(address)
            try:
                stream = super().connect_tcp(str(address), port, self._left(timeout), local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
            else:
                return _LimitedStream(stream, self._deadline)
        raise problem or httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(self, *_args: object, **_kwargs: object) -> httpcore.NetworkStream:
        """Refuse."""
        raise ForbiddenTarget("webhook_url: a webhook can't lead to a unix socket")

    def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} can't be resolved ({error})") from error
        addresses = [ipaddress.ip_address(str(entry[4][0])) for entry in found]
        permitted = [address for address in addresses if may_connect(address, self._allowed)]
        if not permitted:
            shown = ", ".join(map(str, addresses))
            raise ForbiddenTarget(
                f"{host} is {shown}: neither public nor in TUNEYARD_WEBHOOK_ALLOW; no connection was made"
            )
        return permitted

    def _left(self, timeout: float | None) -> float:
        return _seconds_left(self._deadline, timeout)


class _LimitedStream(httpcore.NetworkStream):
    """A connection whose reads and writes all end by one deadline, even if bytes arrive slowly.

    Reading also ends after MOST_BYTES.
    """

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self._left_bytes = MOST_BYTES

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left_bytes <= 0:
            raise httpcore.ReadError(f"the receiver sent {MOST_BYTES} bytes without a response")
        content = self._stream.read(min(max_bytes, self._left_bytes), _seconds_left(self._deadline, timeout))
        self._left_bytes -= len(content)
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _seconds_left(self._deadline, timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _seconds_left(self._deadline, timeout)
        return _LimitedStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _seconds_left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the receiver took too long")
    return left if timeout is None else min(left, timeout)
