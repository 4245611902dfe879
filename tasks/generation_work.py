"""`GenerationWork`: one request to the generation process, and the connection on which its answer is sent."""

import json
import queue
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.answer_engine import EngineName
from sft.errors import TuneyardError
from tasks.causes import explain

REQUEST_BYTES = 2**24
SEND_SECONDS = 60.0
Key = tuple[EngineName, Path, str, Path | int | None]  # of requests that are answered together


class ReplyStream:
    """Sends lines of JSON over a connection from a thread of its own, so that a slow reader holds up nobody."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.is_gone = False
        self.is_closed = False
        self._sender = threading.Thread(target=self._send, name="reply", daemon=True)
        self._sender.start()

    def write(self, values: dict[str, Any]) -> None:
        """Queue a line."""
        if not self.is_closed:
            self._lines.put(json.dumps(values).encode() + b"\n")

    def fail(self, error: BaseException) -> None:
        """Send an error, and close. Internal errors are not described."""
        cause = explain(error)
        is_known = cause.code != TuneyardError.code
        detail = cause.message if is_known else "the answer could not be generated; see the service's log"
        code = cause.code if is_known else "generation_failed"
        self.write({"error": {"code": code, "detail": detail}})
        self.close()

    def close(self) -> None:
        """Close the connection once all has been sent."""
        if not self.is_closed:
            self.is_closed = True
            self._lines.put(None)

    def join(self) -> None:
        """Wait a little until all has been sent."""
        self._sender.join(2)

    def _send(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._connection.sendall(line)
            except OSError:
                self.is_gone = True
        with_no_more(self._connection)

    def watch(self) -> None:
        """Wait until the client hangs up, or all has been sent."""
        try:
            while not self.is_closed and self._connection.recv(1):
                pass
        except OSError:
            pass
        self.is_gone = True


def with_no_more(connection: socket.socket) -> None:
    """Tell the client that nothing follows."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        connection.close()


@dataclass(eq=False)
class GenerationWork:
    """A request whose prompts are token ids.

    Attributes:
        stamp: of the base model's folder (`sft.files.stamps`).
        calls: the form in which calls of functions are read from the answers.
        rank: that vLLM's server must have room for.
        sequences: made once the model is loaded.
    """

    reply: ReplyStream
    request: dict[str, Any]
    base: Path
    stamp: str
    adapter: Path | None
    prompts: list[list[int]]
    calls: str | None = None
    engine: EngineName = "transformers"
    rank: int = 0
    arrived_at: float = field(default_factory=time.monotonic)
    sequences: list[Any] = field(default_factory=list)

    @property
    def model(self) -> tuple[Path, str]:
        """The base model, as its files are."""
        return self.base, self.stamp

    @property
    def key(self) -> Key:
        """What answers it: requests with the same key are answered together."""
        return self.engine, *self.model, self.adapter if self.engine == "transformers" else self.rank

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.reply.is_gone or self.reply.is_closed

    def finish_if_done(self) -> None:
        """If all sequences have ended, send the counts of tokens, and close."""
        if not self.sequences or self.is_over or not all(sequence.is_finished for sequence in self.sequences):
            return
        generated = sum(len(sequence.generated) for sequence in self.sequences)
        self.reply.write({"usage": {"prompt_tokens": sum(map(len, self.prompts)), "completion_tokens": generated}})
        self.reply.close()


def read_request(connection: socket.socket) -> dict[str, Any]:
    """Read a request, which is one line."""
    with connection.makefile("rb") as lines:
        request: dict[str, Any] = json.loads(lines.readline(REQUEST_BYTES))
    return request
