"""`Pulse`: tells whether a process stands still, such as the one that listens on a socket, and ends it."""

import contextlib
import os
import signal
import socket
import struct
import time

import psutil

SILENT_SECONDS = 30.0
_CREDENTIALS = struct.Struct("3i")  # pid, user, group


class Pulse:
    """The CPU time of a process. A process that works or polls uses some; a stopped one none.

    Args:
        process: None if it is not known; then none is ended.
    """

    def __init__(self, process: psutil.Process | None) -> None:
        self._process = process
        self._used: float | None = None
        self._changed_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Of the process, if it is known."""
        return self._process.pid if self._process else None

    def is_still(self) -> bool:
        """Whether the process used no CPU time for `SILENT_SECONDS` between calls of this."""
        if self._process is None:
            return False
        try:
            user, system, *_ = self._process.cpu_times()
        except psutil.Error:  # it has ended, which closes the connection
            return False
        if not user + system or user + system != self._used:
            self._used, self._changed_at = user + system, time.monotonic()
        return time.monotonic() - self._changed_at >= SILENT_SECONDS

    def end(self) -> None:
        """Kill the process, and its children if it leads a group; its ends of connections are closed soon after."""
        if self._process is None or not self._process.is_running():
            return
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def find_peer(connection: socket.socket) -> psutil.Process | None:
    """The process that listens at the other end; None where the kernel does not tell (Linux does)."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    with contextlib.suppress(OSError, psutil.Error):
        pid, *_ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
        return psutil.Process(pid) if pid > 0 else None
    return None
