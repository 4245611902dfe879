"""One job at a time for a worker that was started without `--limit`, which takes all waiting runs.

Such a worker would train them side by side on the same GPU. So a job's keeper, whose parent is the worker, waits until
the worker's other job has ended; if that takes long, the run goes back into the queue, at its old place, where another
host's worker may take it.

The lock is a byte of a file in the state folder, at the worker's pid: the kernel frees it when the keeper ends.
"""

import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

WAIT_SECONDS = 120.0  # less than a run may be without an attempt (`jobs.watchdog.recovery`)
POLL_SECONDS = 0.5
WAITING = (
    "This worker has no limit, so this job waits for the one that it runs; start workers with `--limit 1`, one for "
    "each job that the host can run at once"
)


@contextmanager
def worker_slot(is_stopped: Callable[[], bool], wait_seconds: float = WAIT_SECONDS) -> Iterator[bool]:
    """Hold the slot of the worker that started this process; yields False if it did not become free in time.

    Args:
        is_stopped: whether to stop waiting.
    """
    worker = os.getppid()
    if not takes_all(read_command(worker)):
        yield True
        return
    try:
        opened = _lock_file().open("a")
    except OSError as error:  # a job of this host can't write its results either, and says so itself
        sys.stderr.write(f"{error}\n")
        yield True
        return
    with opened as file:
        yield _wait(lambda: _lock(file.fileno(), worker), is_stopped, wait_seconds)


def _wait(attempt: Callable[[], bool], is_stopped: Callable[[], bool], seconds: float) -> bool:
    if attempt():
        return True
    sys.stderr.write(f"{WAITING}\n")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        if is_stopped():
            return False
        if attempt():
            return True
    return False


def takes_all(command: Sequence[str]) -> bool:
    """Whether this is the command line of a Prefect worker without a limit."""
    starts = any(pair == ("worker", "start") for pair in pairwise(command))
    return starts and not any(word == "--limit" or word.startswith(("--limit=", "-l")) for word in command)


def read_command(pid: int) -> list[str]:
    """The command line of a process; empty if it can't be read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _lock_file() -> Path:
    """One file for each host and pid namespace, as several hosts may share a state folder."""
    from jobs.project import default_home  # 3 MB, which no other keeper needs

    home = Path(os.environ.get("TUNEYARD_HOME") or default_home()).expanduser()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home / f"workers-{socket.gethostname()}-{Path('/proc/self/ns/pid').stat().st_ino}.lock"


def _lock(descriptor: int, offset: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
    except OSError:
        return False
    return True
