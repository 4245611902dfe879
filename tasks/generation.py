"""The generation process: one base model and its adapters, which answers all requests of the service.

`python -m tasks.generation SOCKET LOCK` serves connections to a socket, until its stdin is closed, or nothing has been
asked for `generation_idle_seconds`. A request is one line of JSON (`jobs.service.generator`), the response several:
`{"index": ..., "text": ..., "tokens": [...], "finish": ...}` for each piece of an answer, and last `{"usage": ...}` or
`{"error": {"code": ..., "detail": ...}}`. A client that hangs up cancels its request.
"""

import argparse
import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from jobs.network.proxies import bypass_proxies
from jobs.privacy import keep_private
from jobs.sanitizing.log_lines import keep_lines_whole
from tasks.answering import Answering
from tasks.generation_room import be_first_to_go

BACKLOG = 64


def serve(path: Path, lock: Path) -> None:
    """Serve connections. Returns at once if another process holds the lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen(BACKLOG)
        os.ftruncate(held, 0)
        os.pwrite(held, str(path).encode(), 0)
        answering = Answering(path.parent)
        threading.Thread(target=end_with_stdin, name="end", daemon=True).start()
        threading.Thread(target=accept_all, args=(door, answering), name="accept", daemon=True).start()
        try:
            answering.run()
        finally:
            os.ftruncate(held, 0)
            answering.close()
            sys.stderr.flush()
            os._exit(0)  # threads may wait for their clients


def accept_all(door: socket.socket, answering: Answering) -> None:
    """Accept connections."""
    while True:
        with contextlib.suppress(OSError):
            answering.accept(door.accept()[0])


def end_with_stdin() -> None:
    """End this process when its parent does, or closes its stdin."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the generation process."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("socket", type=Path)
    arguments.add_argument("lock", type=Path)
    options = arguments.parse_args()
    keep_private()
    keep_lines_whole()
    bypass_proxies(os.environ)
    be_first_to_go()
    os.nice(5)
    serve(options.socket, options.lock)


if __name__ == "__main__":
    main()
