"""How many connections a server accepts, and how long it waits for a client."""

import resource
from dataclasses import dataclass

from sft.errors import InvalidConfig

MOST_DESCRIPTORS = 65536  # requested by this process if the hard limit allows it
MOST_CONNECTIONS = 4096
HEADER_SECONDS = 20.0
UNREAD_SECONDS = 60.0


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be, and for how long a client may keep the server waiting."""

    connections: int
    accepted_at_once: int  # asyncio accepts this many before it handles the first
    body_seconds: float
    header_seconds: float = HEADER_SECONDS  # from the connection, or the end of its idle time, to the whole head
    unread_seconds: float = UNREAD_SECONDS  # in which the client takes no byte of a response


def limits_for(descriptors: int, connections: int | None, body_seconds: float) -> ConnectionLimits:
    """Half of the descriptors are for connections: files, the database and other servers need the rest.

    Raises:
        InvalidConfig: more connections are configured than the descriptors allow.
    """
    most = descriptors // 2
    if connections is not None and connections > most:
        raise InvalidConfig(
            f"max_connections must be at most {most} with {descriptors} open files (ulimit -n), got {connections}"
        )
    return ConnectionLimits(connections or min(most, MOST_CONNECTIONS), max(1, descriptors // 16), body_seconds)


def raise_descriptor_limit() -> int:
    """Raise this process's limit on open files to its hard limit; returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return most if soft == resource.RLIM_INFINITY else soft
