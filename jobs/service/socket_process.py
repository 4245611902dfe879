"""`SocketProcess`: a process that listens on a socket, is started when needed, and ends with the service."""

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Literal

from jobs.scratch import make_scratch
from jobs.settings import PROJECT_ROOT
from sft.errors import TuneyardError
from sft.files.places import find_temporary
from sft.files.temporary_folders import LockedFolder

END_SECONDS = 5.0  # a killed process closes its socket, frees its memory, and only then counts as ended
MAX_FOLDER_BYTES = 60


class SocketProcess:
    """A process with a folder of its own for its socket, both gone after `close`. Thread-safe.

    Args:
        use: what the process is called.
        problem: error for a process that can't be started.
    """

    def __init__(self, use: Literal["planner", "generation"], problem: type[TuneyardError]) -> None:
        self._use = use
        self._problem = problem
        self._lock = threading.Lock()
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: LockedFolder | None = None

    def start(self) -> None:
        """Start the process. No effect if it runs or this is closed. Raises if there is no folder for its socket."""
        with self._lock:
            if self._is_closed or (self._process is not None and self._process.poll() is None):
                return
            self._clear()
            folder = find_temporary()
            is_short = len(os.fsencode(folder)) <= MAX_FOLDER_BYTES  # a socket's path is limited
            try:
                self._scratch = make_scratch(self._use, folder if is_short else Path("/tmp"))  # noqa: S108
            except OSError as error:
                raise self._problem(
                    f"the {self._use} process needs a temporary folder ({error}); free some space"
                ) from error
            self._process = subprocess.Popen(
                self._command(self._socket_path()),
                cwd=PROJECT_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[self._scratch.lock],
                start_new_session=True,  # Ctrl-C must not reach it; it ends when its stdin is closed
            )

    def close(self) -> None:
        """End the process and what it does. It can't be started afterwards."""
        with self._lock:
            self._is_closed = True
            self._clear()

    def _command(self, path: Path) -> list[str]:
        """What starts the process that listens on this socket."""
        raise NotImplementedError

    def _socket_path(self) -> Path:
        return Path(self._scratch.folder if self._scratch else "", f"{self._use}.sock")

    def _clear(self) -> None:
        if self._process is not None:
            if self._process.stdin:
                self._process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            if not has_ended(self._process):  # it is stopped, or its main thread never returns to Python
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None


def has_ended(process: subprocess.Popen[bytes] | None) -> bool:
    """Whether a process has ended, or does so within `END_SECONDS`."""
    if process is None:
        return True
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    return process.poll() is not None
