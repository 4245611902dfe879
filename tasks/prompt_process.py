"""`PromptProcesses`: the processes that turn prompts into token ids, started on first use and again after their end."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import psutil

from jobs.errors import GenerationFailed
from jobs.keeper import NOTE
from jobs.project import PROJECT_ROOT
from jobs.service.pulse import Pulse
from sft.confinement import explain_end, open_note
from sft.errors import find_error

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "tasks.prompts")
PATIENCE_SECONDS = 0.5  # until a second process is started beside one that is busy
LOOK_SECONDS = 5.0  # between looks at a process that does not respond


class Prompts(NamedTuple):
    """Prompts as token ids.

    Attributes:
        calls: name of the form in which calls of functions are read from the answers (`sft.generation.call_forms`).
    """

    ids: list[list[int]]
    calls: str | None = None


class PromptProcesses:
    """Two processes, so that a model whose template takes long holds up its own requests alone. Thread-safe."""

    def __init__(self) -> None:
        self._processes = (PromptProcess(), PromptProcess())
        self._turns: WeakValueDictionary[Path, threading.Lock] = WeakValueDictionary()
        self._lock = threading.Lock()

    def write(self, model: str, folder: Path, request: dict[str, Any]) -> Prompts:
        """The token ids of each prompt.

        Args:
            folder: with tokenizer and chat template.
            request: with `settings`, and `messages`, perhaps with `tools`, or `prompts`.

        Raises:
            TuneyardError: the template rejects the messages, or the files can't be read.
            ResourceLimit: tokenizer or template took too much time or memory.
            GenerationFailed: the process ended for another reason.
        """
        content = {name: request.get(name) for name in ("settings", "messages", "tools", "prompts")}
        line = json.dumps({"model": model, "folder": str(folder), **content}).encode() + b"\n"
        with self._lock:
            turn = self._turns.setdefault(folder, threading.Lock())
        with turn, self._free() as process:
            response = process.ask(line)
        if "error" in response:
            raise find_error(response["error"]["code"])(response["error"]["detail"])
        return Prompts(response["ids"], response["calls"])

    def close(self) -> None:
        """End the processes, also one that is asked."""
        for process in self._processes:
            process.close()

    @contextmanager
    def _free(self) -> "Iterator[PromptProcess]":
        """The first process that is free: the second one only if the first stays busy."""
        while True:
            for process in self._processes:
                if process.lock.acquire(timeout=PATIENCE_SECONDS):
                    try:
                        yield process
                    finally:
                        process.lock.release()
                    return


class PromptProcess:
    """One request at a time, for who holds the `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._note = open_note()
        self._is_closed = False

    def close(self) -> None:
        """End the process, which is not started again; who asks it gets GenerationFailed."""
        self._is_closed = True
        if (process := self._process) is not None:
            process.kill()
            process.wait()
            with self.lock:
                _close_pipes(process)

    def ask(self, line: bytes) -> dict[str, Any]:
        """The response to a request. One that is killed by somebody else, or stands still, is asked again in another.

        Raises:
            ResourceLimit: tokenizer or template took too much time or memory.
            GenerationFailed: the process ended for another reason, or was killed twice.
        """
        received, code = self._send(line)
        if code == -signal.SIGKILL and not self._is_closed:
            received, code = self._send(line)
        if code is not None:
            raise explain_end(code, self._note) or GenerationFailed(
                f"the process that writes prompts ended with code {code}; see the service's log"
            )
        response: dict[str, Any] = json.loads(received)
        return response

    def _send(self, line: bytes) -> tuple[bytes, int | None]:
        """What it responds, and the exit code if it ended instead."""
        process = self._process
        if process is None or process.poll() is not None:
            if self._is_closed:
                raise GenerationFailed("the service is stopping")
            process = self._process = self._start()
        assert process.stdin is not None  # noqa: S101 - a pipe
        assert process.stdout is not None  # noqa: S101 - a pipe
        received = b""
        with _ending_if_still(process.pid), suppress(BrokenPipeError):
            process.stdin.write(line)
            process.stdin.flush()
            received = process.stdout.readline()
        if received.endswith(b"\n"):
            return received, None
        code = process.wait()
        _close_pipes(process)
        return b"", code

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            COMMAND,
            cwd=PROJECT_ROOT,
            env=os.environ | {NOTE: str(self._note)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._note],
        )


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what was not written yet
                pipe.close()


@contextmanager
def _ending_if_still(pid: int) -> Iterator[None]:
    """Kill a child that stands still (`Pulse`) during the block."""
    is_over = threading.Event()

    def watch() -> None:
        with suppress(psutil.Error):
            pulse = Pulse(psutil.Process(pid))
            while not is_over.wait(LOOK_SECONDS):
                if pulse.is_still():
                    logger.warning("A process that writes prompts stands still; it is ended")
                    pulse.end()

    threading.Thread(target=watch, name="pulse", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
