"""HTTP clients whose calls end by the deadline of `jobs.network.deadlines`, even if bytes arrive one by one.

httpx limits only the time of each socket read: a server that sends a byte now and then can hold a call for ever.
"""

import ssl
from collections.abc import Iterable
from math import inf
from typing import Any, TypeVar

import httpcore
import httpx

from jobs.network.deadlines import seconds_left

ClientT = TypeVar("ClientT", bound=httpx.Client)


class _Stream(httpcore.NetworkStream):
    """A connection whose operations end by the deadline of the current call."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _shorten(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _shorten(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        limit = _shorten(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Opens such connections."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        limit = _shorten(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_tcp(host, port, limit, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.NetworkStream:
        limit = _shorten(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_unix_socket(path, limit, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(min(seconds, max(0.0, seconds_left())))


def bound(client: ClientT) -> ClientT:
    """Make each call of the client end by its deadline.

    httpx has no public way to do that and keep the environment's proxies; a test checks that this works.
    """
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None and not isinstance(pool._network_backend, _Backend):
            pool._network_backend = _Backend(pool._network_backend)
    return client


def _shorten(timeout: float | None, error: type[Exception]) -> float | None:
    left = seconds_left()
    if left <= 0:
        raise error("the call exceeded its deadline")
    return timeout if left == inf else left if timeout is None else min(timeout, left)
