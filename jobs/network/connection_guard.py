"""Keeps clients that send or read slowly, or not at all, from holding up a uvicorn server.

uvicorn limits how long a connection may be idle between two requests, and nothing else. This module looks at the
connections of the server that serves the app, whichever command started it, through what uvicorn hands to the app's
lifespan (decision 22).
"""

import asyncio
import logging
import os
import resource
import socket
import time
from asyncio import AbstractEventLoop, BaseTransport
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

import h11
import psutil
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn

from jobs.network.refused_connection import RefusedConnection
from jobs.sanitizing.log_lines import SeldomLog
from sft.errors import InvalidConfig

logger = logging.getLogger(__name__)

MOST_DESCRIPTORS = 65536  # what the process asks for where it may have more
MOST_CONNECTIONS = 4096
SWEEP_SECONDS = 1.0
LISTEN_SECONDS, LISTEN_TRIES = 0.05, 200
DEFER_SECONDS = 1
BATCHES = 16  # who makes room looks at every connection, so it makes some more
HEADER_SECONDS = 20.0
UNREAD_SECONDS = 60.0
OUT_OF_DESCRIPTORS = "socket.accept() out of system resource"  # asyncio's words


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be, and for how long a client may keep the server waiting."""

    connections: int
    accepted_at_once: int  # asyncio takes so many before the first of them is looked at
    body_seconds: float
    header_seconds: float = HEADER_SECONDS  # from the connection, or the end of its idle time, to the whole head
    unread_seconds: float = UNREAD_SECONDS  # without one byte taken of an answer


class WaitsFor(StrEnum):
    """What a server waits for while it can do nothing else for a connection."""

    HEADERS = "headers"
    BODY = "a body"
    NEXT = "another request"  # uvicorn limits that itself
    READER = "a client that reads"
    HANDSHAKE = "the handshake of a web socket"  # a head that uvicorn took and its web socket library did not


@dataclass
class Wait:
    """How long a connection has been waited for, in sweeps: of a time in which the server was busy only one counts."""

    phase: WaitsFor
    cycle: object  # uvicorn's object of one request
    unsent_bytes: int
    began: float
    sweeps: int = 0
    sweeps_without_progress: int = 0


def limits_for(descriptors: int, connections: int | None, body_seconds: float) -> ConnectionLimits:
    """Half of the descriptors are for connections: files, the database and other servers need the rest.

    Raises:
        InvalidConfig: more connections are wished for than the descriptors allow.
    """
    most = descriptors // 2
    if connections is not None and connections > most:
        raise InvalidConfig(
            f"max_connections must be at most {most} with {descriptors} open files (ulimit -n), got {connections}"
        )
    return ConnectionLimits(connections or min(most, MOST_CONNECTIONS), max(1, descriptors // 16), body_seconds)


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files as far as it may go; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return most if soft == resource.RLIM_INFINITY else soft


class ConnectionGuard:
    """ASGI middleware: guards the connections of the uvicorn server that runs the app, from its start to its end.

    Any other server is left as it is, with a warning.
    """

    def __init__(self, app: ASGIApp, limits: ConnectionLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; the lifespan with the guard beside it."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        server = getattr(receive, "__self__", None)
        if isinstance(server, LifespanOn):
            async with _guarded(server.config, self.limits):
                await self.app(scope, receive, send)
        else:
            logger.warning("Slow and silent connections are not limited: the app is not served by uvicorn")
            await self.app(scope, receive, send)


@asynccontextmanager
async def _guarded(config: Config, limits: ConnectionLimits) -> AsyncIterator[None]:
    """Put the guard where uvicorn makes the protocol of a connection. The app's start comes before the first one."""
    loop = asyncio.get_running_loop()
    guard = Guard(config.http_protocol_class, limits)
    config.http_protocol_class = cast(Any, guard.make)
    queue_length = config.backlog
    if config.uds is None and config.fd is None:
        config.backlog = min(queue_length, limits.accepted_at_once)
    before = loop.get_exception_handler()
    loop.set_exception_handler(_write_seldom(before))
    tasks = [asyncio.create_task(guard.sweep_for_ever()), asyncio.create_task(_tune_listening(queue_length))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loop.set_exception_handler(before)


async def _tune_listening(queue_length: int) -> None:
    """Once the server listens: let the system queue what asyncio does not accept at once, and hold back the silent.

    asyncio takes one number for both, and a connection that finds the system's queue full is tried again only after
    a second. A connection on which something was sent when it is accepted is at work before others can displace it.
    """
    for _ in range(LISTEN_TRIES):
        await asyncio.sleep(LISTEN_SECONDS)
        listening = [c.fd for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        for descriptor in listening:
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                copy.listen(queue_length)
                if hasattr(socket, "TCP_DEFER_ACCEPT"):
                    copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_SECONDS)
        if listening:
            return


def _write_seldom(before: Callable[[AbstractEventLoop, dict[str, Any]], object] | None) -> Callable[..., object]:
    """asyncio writes a traceback for each of thousands of tries to accept a connection without a descriptor."""
    log = SeldomLog(logger)

    def handle(loop: AbstractEventLoop, context: dict[str, Any]) -> object:
        if str(context.get("message")).startswith(OUT_OF_DESCRIPTORS):
            log.warn("No connection can be accepted: the process has no file descriptor left (ulimit -n)")
            return None
        return before(loop, context) if before else loop.default_exception_handler(context)

    return handle


class Guard:
    """The connections of one server. A client that keeps it waiting too long, or while others need room, is cut off.

    Args:
        make_protocol: uvicorn's class for a connection; one of its HTTP/1.1 protocols.
    """

    def __init__(self, make_protocol: Callable[..., Any], limits: ConnectionLimits) -> None:
        self._make_protocol = make_protocol
        self._limits = limits
        self._connections: set[Any] = set()
        self._waits: dict[Any, Wait] = {}
        self._made_at: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._hurried: WeakSet[Any] = WeakSet()
        self._log = SeldomLog(logger)

    def make(self, **values: Any) -> Any:
        """The protocol of a new connection: uvicorn's own, or one that refuses it."""
        self._connections = values["server_state"].connections
        excess = len(self._connections) + 1 - self._limits.connections
        if excess > 0 and not self._make_room(excess):
            self._log.warn(f"Refused a connection: {self._limits.connections} are at work (TUNEYARD_MAX_CONNECTIONS)")
            return RefusedConnection(self._limits.connections)
        protocol = self._make_protocol(**values)
        protocol.app = partial(self._serve, protocol, protocol.app)
        protocol.on_response_complete = partial(self._finish, protocol, protocol.on_response_complete)
        self._made_at[protocol] = time.monotonic()
        return protocol

    async def _serve(self, connection: Any, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Notice who has sent another request before the answer begins: no client that waits for answers does that."""

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and _has_sent_more(connection):
                self._hurried.add(connection)
            await send(message)

        await app(scope, receive, watch)

    def _finish(self, connection: Any, finish: Callable[[], None]) -> None:
        """After an answer: one is enough for who has sent hundreds of requests meanwhile, and others wait for all."""
        if connection in self._hurried:
            self._hurried.discard(connection)
            self._log.warn("Closed a connection whose client sent another request before it had an answer")
            connection.transport.close()  # once the answer is sent
        finish()

    async def sweep_for_ever(self) -> None:
        """Look at every connection once a second."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self.sweep()
            except Exception:  # the next one may go well, and no limit is kept without it
                logger.exception("Looking for slow connections failed")

    def sweep(self) -> None:
        """Cut off whoever has kept the server waiting for too long."""
        waits = {}
        for connection in self._connections:
            if wait := self._observe(connection):
                wait.sweeps += 1
                wait.sweeps_without_progress += 1
                waits[connection] = wait
        self._waits = waits
        late = {connection: wait.phase for connection, wait in waits.items() if self._is_too_long(wait)}
        self._cut(late)
        if late:
            phases = Counter(late.values())
            self._log.warn(f"Closed connections that waited for {_name(phases)} too long")

    def _make_room(self, excess: int) -> bool:
        """Cut off whom the server waits for: of the address with most of them, the one that has waited longest."""
        excess -= sum(map(_is_gone, self._connections))
        if excess <= 0:
            return True
        waits = {connection: wait for connection in self._connections if (wait := self._observe(connection))}
        if len(waits) < excess:
            return False
        self._waits |= waits
        held = Counter(_address(connection) for connection in waits)
        order = sorted(waits, key=lambda c: (-held[_address(c)], waits[c].began))
        self._cut(order[: max(excess, self._limits.connections // BATCHES)])
        self._log.warn(f"Closed waiting connections to make room: more than {self._limits.connections} were open")
        return True

    def _observe(self, connection: Any) -> Wait | None:
        """What a connection waits for now, and since when; None while the server is at work for it."""
        phase = find_wait(connection)
        if phase is None:
            return None
        cycle, unsent = getattr(connection, "cycle", None), _unsent_bytes(connection.transport)
        known = self._waits.get(connection)
        if known is None or known.phase is not phase or known.cycle is not cycle:
            now = time.monotonic()
            return Wait(phase, cycle, unsent, now if cycle else self._made_at.get(connection, now))
        if known.unsent_bytes != unsent:
            known.unsent_bytes, known.sweeps_without_progress = unsent, 0
        return known

    def _is_too_long(self, wait: Wait) -> bool:
        seconds = wait.sweeps * SWEEP_SECONDS
        match wait.phase:
            case WaitsFor.HEADERS | WaitsFor.HANDSHAKE:
                return seconds > self._limits.header_seconds
            case WaitsFor.BODY:
                return seconds > self._limits.body_seconds
            case WaitsFor.READER:
                return wait.sweeps_without_progress * SWEEP_SECONDS > self._limits.unread_seconds
            case WaitsFor.NEXT:
                return False

    def _cut(self, connections: Iterable[Any]) -> None:
        for connection in connections:
            self._waits.pop(connection, None)
            connection.transport.abort()  # `close` would wait for a client to read what is left


def find_wait(connection: Any) -> WaitsFor | None:
    """What a connection of uvicorn's waits for; None while the server has something to do, and for open web sockets."""
    transport: BaseTransport | None = getattr(connection, "transport", None)
    if transport is None:
        return None
    if not hasattr(connection, "timeout_keep_alive_task"):  # of uvicorn's classes those of web sockets lack it
        is_open = getattr(connection, "handshake_complete", True) or transport.is_closing()
        return None if is_open else WaitsFor.HANDSHAKE
    if _unsent_bytes(transport):
        return WaitsFor.READER
    if transport.is_closing():
        return None
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:
        return WaitsFor.HEADERS if connection.timeout_keep_alive_task is None else WaitsFor.NEXT
    if cycle.more_body and not cycle.waiting_for_100_continue and not connection.flow.read_paused:
        return WaitsFor.BODY
    return None


def _has_sent_more(connection: Any) -> bool:
    """Whether the next request has come already, by either of uvicorn's HTTP/1.1 protocols."""
    if hasattr(connection, "pipeline"):
        return bool(connection.pipeline)
    return connection.conn.their_state is h11.DONE and bool(connection.conn.trailing_data[0].strip())


def _is_gone(connection: Any) -> bool:
    """Whether it is being closed and nothing is left to send."""
    transport = getattr(connection, "transport", None)
    return transport is not None and transport.is_closing() and not _unsent_bytes(transport)


def _unsent_bytes(transport: Any) -> int:
    return int(transport.get_write_buffer_size())


def _address(connection: Any) -> str:
    return str(connection.client[0]) if connection.client else ""


def _name(phases: Counter[WaitsFor]) -> str:
    return ", ".join(f"{phase} ({count})" for phase, count in sorted(phases.items()))
