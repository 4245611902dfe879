"""Determines what a uvicorn server waits for on a connection."""

from asyncio import BaseTransport
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import h11


class WaitsFor(StrEnum):
    """What a server waits for on a connection for which it has nothing else to do."""

    HEADERS = "headers"
    BODY = "a body"
    NEXT = "another request"  # uvicorn limits that itself
    READER = "a client that reads"
    HANDSHAKE = "the handshake of a web socket"  # a head that uvicorn took and its web socket library did not


@dataclass
class Wait:
    """Sweeps for which a connection has kept the server waiting; a time in which the server was busy counts as one."""

    phase: WaitsFor
    cycle: object  # uvicorn's object of one request
    unsent_bytes: int
    began: float
    sweeps: int = 0
    sweeps_without_progress: int = 0


def find_wait(connection: Any) -> WaitsFor | None:
    """What uvicorn waits for on a connection; None while the server has work to do, and for open web sockets."""
    transport: BaseTransport | None = getattr(connection, "transport", None)
    if transport is None:
        return None
    if not hasattr(connection, "timeout_keep_alive_task"):  # of uvicorn's classes those of web sockets lack it
        is_open = getattr(connection, "handshake_complete", True) or transport.is_closing()
        return None if is_open else WaitsFor.HANDSHAKE
    if count_unsent_bytes(transport):
        return WaitsFor.READER
    if transport.is_closing():
        return None
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:
        return WaitsFor.HEADERS if connection.timeout_keep_alive_task is None else WaitsFor.NEXT
    if cycle.more_body and not cycle.waiting_for_100_continue and not connection.flow.read_paused:
        return WaitsFor.BODY
    return None


def has_sent_more(connection: Any) -> bool:
    """Whether the next request has already arrived, in either of uvicorn's HTTP/1.1 protocols."""
    if hasattr(connection, "pipeline"):
        return bool(connection.pipeline)
    return connection.conn.their_state is h11.DONE and bool(connection.conn.trailing_data[0].strip())


def is_gone(connection: Any) -> bool:
    """Whether it is being closed and nothing is left to send."""
    transport = getattr(connection, "transport", None)
    return transport is not None and transport.is_closing() and not count_unsent_bytes(transport)


def count_unsent_bytes(transport: Any) -> int:
    """Bytes of a response that the client has not taken yet."""
    return int(transport.get_write_buffer_size())
