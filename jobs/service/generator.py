"""`Generator`: answers of models, from a process of its own that is started on first use (`tasks.generation`)."""

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from anyio import to_thread

from jobs.errors import GenerationBusy, GenerationFailed
from jobs.service.pulse import Pulse, find_peer
from jobs.service.socket_process import SocketProcess, has_ended
from jobs.settings import Settings
from sft.errors import find_error

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
POLL_SECONDS = 0.1
LOOK_SECONDS = 5.0  # between looks at a process that sends nothing
BUSY_POLL_SECONDS = 2.0
LINE_BYTES = 2**24
COMMAND = (sys.executable, "-m", "tasks.generation")
LOCK = "generation.lock"  # in the state folder; holds the path of the socket


class _ProcessEnded(Exception):
    """The process that was asked has ended; its pid, if it is known."""

    def __init__(self, pid: int | None = None) -> None:
        super().__init__(pid)
        self.pid = pid


class Generator(SocketProcess):
    """Ask the generation process, of which there is one for a state folder. For use on one event loop.

    It starts with the first request, ends when it has been idle for `generation_idle_seconds`, with `close`, and with
    the process that started it.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__("generation", GenerationFailed)
        self._settings = settings

    async def generate(
        self, request: dict[str, Any], settings: Settings, wait_seconds: float = 0
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the pieces of the answers, as `tasks.generation` describes them. Closing the iterator cancels it.

        If the process ends before the first piece, as one that was killed just before does, another one is asked. One
        that stands still (`Pulse`) is ended.

        Args:
            settings: With the addresses of the stack, from which adapters are fetched.
            wait_seconds: How long to wait while jobs leave no room.

        Raises:
            GenerationBusy: jobs leave no room.
            GenerationFailed: no answer within `generation_seconds`, or the process ended.
            TuneyardError: an error of the model, the adapter or the prompt.
        """
        asked_at, has_asked_another, ended_pid = time.monotonic(), False, None
        deadline = asked_at + self._settings.generation_seconds
        line = json.dumps({**request, "settings": settings.model_dump(mode="json")}).encode() + b"\n"
        while True:
            has_begun = False
            try:
                async with contextlib.aclosing(self._ask(line, deadline)) as responses:
                    async for response in responses:
                        has_begun = True
                        yield response
                return
            except _ProcessEnded as error:
                is_same = error.pid is not None and error.pid == ended_pid  # a killed one may close its sockets in turn
                if has_begun or (has_asked_another and not is_same):
                    raise GenerationFailed("the generation process ended before the answer did; try again") from error
                has_asked_another, ended_pid = True, error.pid
                await to_thread.run_sync(has_ended, self._process)
                await asyncio.sleep(POLL_SECONDS)
            except GenerationBusy:
                if has_begun or time.monotonic() - asked_at + BUSY_POLL_SECONDS > wait_seconds:
                    raise
                await asyncio.sleep(BUSY_POLL_SECONDS)
                deadline = time.monotonic() + self._settings.generation_seconds

    async def _ask(self, line: bytes, deadline: float) -> AsyncGenerator[dict[str, Any]]:
        reader, writer = await self._connect(deadline)
        try:
            pulse = Pulse(find_peer(writer.get_extra_info("socket")))
            writer.write(line)
            while True:
                response = await self._read(reader, deadline, pulse)
                if "error" in response:
                    raise find_error(response["error"]["code"])(response["error"]["detail"])
                yield response
                if "usage" in response:
                    return
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, deadline: float, pulse: Pulse) -> dict[str, Any]:
        try:
            received = await self._read_line(reader, deadline, pulse)
        except TimeoutError as error:
            raise GenerationFailed(
                f"no answer within {self._settings.generation_seconds:g} s (TUNEYARD_GENERATION_SECONDS); ask for "
                "fewer tokens, or try again later"
            ) from error
        except ConnectionError:  # it was killed
            received = b""
        except ValueError as error:
            raise GenerationFailed(f"the generation process can't be read ({error}); try again") from error
        if not received:
            raise _ProcessEnded(pulse.pid)
        response: dict[str, Any] = json.loads(received)
        return response

    async def _read_line(self, reader: asyncio.StreamReader, deadline: float, pulse: Pulse) -> bytes:
        """Read a line; empty if the process has ended, also one that is ended here. Raises TimeoutError."""
        while True:
            left = deadline - time.monotonic()
            try:
                async with asyncio.timeout(min(left, LOOK_SECONDS)):
                    return await reader.readline()
            except TimeoutError:
                if left <= LOOK_SECONDS:
                    raise
            if pulse.is_still():
                logger.warning("The generation process stands still; it is ended")
                pulse.end()  # then it has no socket, which ends this connection

    async def _connect(self, deadline: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the process of this state folder; start it if there is none."""
        give_up_at = min(time.monotonic() + START_SECONDS, deadline)
        while True:
            if path := self._read_path():
                with contextlib.suppress(OSError):
                    return await asyncio.open_unix_connection(path, limit=LINE_BYTES)
            if time.monotonic() > give_up_at:
                raise GenerationFailed("the generation process did not start; see the service's log")
            await to_thread.run_sync(self._start)
            await asyncio.sleep(POLL_SECONDS)

    def _read_path(self) -> str:
        try:
            return (self._settings.home / LOCK).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def _start(self) -> None:
        """Start the process if it does not run; it ends at once if another process of the service has started one.

        Raises GenerationFailed if there is no folder for its socket, or this is closed.
        """
        if self._is_closed:
            raise GenerationFailed("the service is stopping")
        self.start()

    def _command(self, path: Path) -> list[str]:
        return [*COMMAND, str(path), str(self._settings.home / LOCK)]
