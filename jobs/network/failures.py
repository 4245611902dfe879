"""Says in words why a server could not be asked: clients see no names of exceptions, which are those of libraries."""

import logging

import httpcore
import httpx

from sft.errors import walk_causes

logger = logging.getLogger(__name__)

NO_RESPONSE = "no response in time"
NO_CONNECTION = "no connection"
CUT_OFF = "the connection was cut off"

_KINDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((TimeoutError, httpx.TimeoutException, httpcore.TimeoutException), NO_RESPONSE),
    ((ConnectionRefusedError, httpx.ConnectError, httpcore.ConnectError), NO_CONNECTION),
    ((ConnectionError, httpx.NetworkError, httpcore.NetworkError), CUT_OFF),
    ((httpx.ProtocolError, httpcore.ProtocolError, httpx.DecodingError), "its response breaks off or is no HTTP"),
    ((httpx.ProxyError, httpcore.ProxyError), "the proxy refuses the connection"),
)


def describe_failure(error: BaseException) -> str:
    """Describe a failed request in a few words for clients. What is unexpected is named in the log alone."""
    for one in walk_causes(error):
        if isinstance(one, httpx.HTTPStatusError):
            return f"it responds with {one.response.status_code}"
        for kinds, words in _KINDS:
            if isinstance(one, kinds):
                return words
    for one in walk_causes(error):
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
        if isinstance(one, ValueError):
            return "its response can't be read"
    logger.warning("A request to a server failed: %s: %s", type(error).__name__, error)
    return "an unexpected error, which the log names"
