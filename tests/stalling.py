"""Servers that hold up whoever asks them: they accept and are silent, send byte by byte, or put callers off."""

import socket
import threading
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
LATER = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"


class StallingServer:
    """`kind`: `silent`, `slow head`, `slow body`, `later` or `hangs up`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._is_closed = threading.Event()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.kind == "silent":
                return
            while connection.recv(65536):
                if self.kind == "hangs up":
                    connection.close()
                    return
                if self.kind == "later":
                    connection.sendall(LATER)
                    continue
                text = ANSWER + b" " * 100_000 if self.kind == "slow body" else ANSWER
                start = len(ANSWER) if self.kind == "slow body" else 0
                connection.sendall(text[:start])
                for byte in text[start:]:
                    connection.sendall(bytes([byte]))
                    if self._is_closed.wait(0.1):
                        return
        except OSError:
            return

    def close(self) -> None:
        """Let go of everybody."""
        self._is_closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._open:
            connection.close()


def measure(call) -> float:
    """Seconds that a call takes."""
    began = time.monotonic()
    call()
    return time.monotonic() - began
