"""The way to the store: a relay that can cut it, and answer as a store does whose disks are full."""

import select
import socket
import threading
from contextlib import suppress
from enum import Enum, auto

FULL = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>XMinioStorageFull</Code>"
    b"<Message>Storage backend has reached its minimum free drive threshold.</Message></Error>"
)
ANSWER = b"HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/xml\r\nConnection: close\r\n"
ANSWER += b"Content-Length: %d\r\n\r\n" % len(FULL) + FULL
WRITES = (b"PUT ", b"POST ")
CHUNK_BYTES = 1 << 16


class Way(Enum):
    """What becomes of requests."""

    OPEN = auto()
    CUT = auto()  # connections are closed at once
    SILENT = auto()  # nothing is answered
    FULL = auto()  # nothing can be written


class Gate:
    """Listens at `url`, and passes connections on to the server as `way` says."""

    def __init__(self, address: str, server: tuple[str, int]) -> None:
        self.way = Way.OPEN
        self._server = server
        self._listener = socket.create_server((address, 0), backlog=256)
        self.url = f"http://{address}:{self._listener.getsockname()[1]}"
        self._is_closed = threading.Event()
        threading.Thread(target=self._accept, name="gate", daemon=True).start()

    def close(self) -> None:
        """Let nothing through any more."""
        self._is_closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._server, timeout=10) as server:
            while not self._is_closed.is_set() and self.way is not Way.CUT:
                ready, _, _ = select.select([client, server], [], [], 0.2)
                if self.way is Way.SILENT:  # what has come is read once the way is open
                    self._is_closed.wait(0.2)
                    continue
                for source, target in ((client, server), (server, client)):
                    if source not in ready:
                        continue
                    content = source.recv(CHUNK_BYTES)
                    if not content:
                        return
                    if source is client and self.way is Way.FULL and content.startswith(WRITES):
                        client.sendall(ANSWER)
                        return
                    target.sendall(content)
