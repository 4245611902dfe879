"""Closes connections of slow or silent clients of a uvicorn server.

uvicorn only limits how long a connection may be idle between two requests. This module checks the connections of the
server that serves the app, whichever command started it, through what uvicorn passes to the app's lifespan
(decision 22).
"""

import asyncio
import json
import logging
import os
import socket
import time
from asyncio import AbstractEventLoop
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakSet

import psutil
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn

from jobs.network.connection_limits import ConnectionLimits
from jobs.network.connection_waits import Wait, WaitsFor, count_unsent_bytes, find_wait, has_sent_more, is_gone
from jobs.sanitizing.log_lines import SeldomLog

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
PROGRESS = "tuneyard.progress"  # in a request's scope: to be called when enough of a long body has arrived
LISTEN_SECONDS, LISTEN_TRIES = 0.05, 200
DEFER_SECONDS = 1
BATCHES = 16  # making room checks every connection, so it makes more room than needed
RETRY_SECONDS = 5  # after which a client that is refused may try again
OUT_OF_DESCRIPTORS = "socket.accept() out of system resource"  # asyncio's message


class ConnectionGuard:
    """ASGI middleware that guards the connections of the uvicorn server that runs the app.

    On any other server it only logs a warning.
    """

    def __init__(self, app: ASGIApp, limits: ConnectionLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; run the guard during the lifespan."""
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
    """Replace uvicorn's protocol factory by the guard's, before the first connection is accepted."""
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
    """Once the server listens, enlarge the system's accept queue and defer connections that send nothing.

    asyncio uses one number for the queue and for how many it accepts at once, and a connection that finds the queue
    full is retried only after a second. A connection that has sent something when it is accepted is at work before
    others can displace it.
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
    """Log accept failures once in a while: asyncio logs a traceback for each of thousands of failed accepts."""
    log = SeldomLog(logger)

    def handle(loop: AbstractEventLoop, context: dict[str, Any]) -> object:
        if str(context.get("message")).startswith(OUT_OF_DESCRIPTORS):
            log.warn("No connection can be accepted: the process has no file descriptor left (ulimit -n)")
            return None
        return before(loop, context) if before else loop.default_exception_handler(context)

    return handle


class Guard:
    """The connections of one server. Closes those that keep it waiting too long, or while others need room.

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
            self._log.warn(f"Refused a connection: {self._limits.connections} are open (TUNEYARD_MAX_CONNECTIONS)")
            return RefusedConnection(self._limits.connections)
        protocol = self._make_protocol(**values)
        protocol.app = partial(self._serve, protocol, protocol.app)
        protocol.on_response_complete = partial(self._finish, protocol, protocol.on_response_complete)
        self._made_at[protocol] = time.monotonic()
        return protocol

    async def _serve(self, connection: Any, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Detect pipelining: a client that waits for its response does not send another request before it."""

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and has_sent_more(connection):
                self._hurried.add(connection)
            await send(message)

        scope[PROGRESS] = lambda: self._waits.pop(connection, None)  # `_waits` is replaced by each sweep
        await app(scope, receive, watch)

    def _finish(self, connection: Any, finish: Callable[[], None]) -> None:
        """Close a pipelining connection after one response, as other clients would wait for all of its requests."""
        if connection in self._hurried:
            self._hurried.discard(connection)
            self._log.warn("Closed a connection whose client sent another request before the response")
            connection.transport.close()  # once the response is sent
        finish()

    async def sweep_for_ever(self) -> None:
        """Check every connection once a second."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self.sweep()
            except Exception:  # the next sweep may work, and without sweeps no limit holds
                logger.exception("Looking for slow connections failed")

    def sweep(self) -> None:
        """Close connections that have kept the server waiting for too long."""
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
        """Close waiting connections, longest wait first, of the addresses with most of them."""
        excess -= sum(map(is_gone, self._connections))
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
        """What the server waits for on a connection, and since when; None while it works for it."""
        phase = find_wait(connection)
        if phase is None:
            return None
        cycle, unsent = getattr(connection, "cycle", None), count_unsent_bytes(connection.transport)
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


def _address(connection: Any) -> str:
    return str(connection.client[0]) if connection.client else ""


def _name(phases: Counter[WaitsFor]) -> str:
    return ", ".join(f"{phase} ({count})" for phase, count in sorted(phases.items()))


class RefusedConnection(asyncio.Protocol):
    """Responds 503 in the form of the API's errors, and closes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Respond without reading the request."""
        detail = f"The service has {self._limit} connections open and takes no more; try again in {RETRY_SECONDS} s"
        body = json.dumps({"detail": detail, "code": "too_many_connections", "request_id": uuid4().hex})
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: {RETRY_SECONDS}\r\nConnection: close\r\n\r\n"
        )
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - for the type checker
        transport.write((head + body).encode())
        transport.close()
