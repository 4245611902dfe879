"""`PromptProcess`: the process that turns prompts into token ids, started on first use and again after its end."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from jobs.errors import GenerationFailed
from jobs.keeper import NOTE
from jobs.project import PROJECT_ROOT
from sft.confinement import explain_end, open_note
from sft.errors import find_error

COMMAND = (sys.executable, "-m", "tasks.prompts")


class Prompts(NamedTuple):
    """Prompts as token ids.

    Attributes:
        calls: name of the form in which calls of functions are read from the answers (`sft.generation.call_forms`).
    """

    ids: list[list[int]]
    calls: str | None = None


class PromptProcess:
    """One request at a time; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._note = open_note()

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
            response = self._ask(line)
        if "error" in response:
            raise find_error(response["error"]["code"])(response["error"]["detail"])
        return Prompts(response["ids"], response["calls"])

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None

    def _ask(self, line: bytes) -> dict[str, Any]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = self._start()
        assert process.stdin is not None  # noqa: S101 - a pipe
        assert process.stdout is not None  # noqa: S101 - a pipe
        try:
            process.stdin.write(line)
            process.stdin.flush()
            received = process.stdout.readline()
        except BrokenPipeError:
            received = b""
        if received:
            response: dict[str, Any] = json.loads(received)
            return response
        self._process = None
        process.stdin.close()
        code = process.wait()
        raise explain_end(code, self._note) or GenerationFailed(
            f"the process that writes prompts ended with code {code}; see the service's log"
        )

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            COMMAND,
            cwd=PROJECT_ROOT,
            env=os.environ | {NOTE: str(self._note)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._note],
        )
