"""What is wrong with a model's or adapter's files, looked at once for each time they change.

To read a long header takes a second in which nothing else of this process runs, and a gigabyte.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.errors import ModelUnusable

LARGEST_JSON = 4 * 2**20  # a longer header or index is left to the plan and the job: 40,000 tensors in one file
WAIT_SECONDS = 1.0
_turn = threading.Lock()

Check = Callable[[Path, str], None]


def find_fault(check: Check, folder: Path, subject: str) -> str | None:
    """The sentence with which `check` refuses this folder; None where it does not. Raises as `a_turn`."""
    changed = tuple(sorted(_describe(path) for path in folder.iterdir()))
    with a_turn():
        return _examine(check, folder, subject, changed)


@contextmanager
def a_turn() -> Iterator[None]:
    """One thread at a time reads long files. Raises TimeoutError when another one does for too long."""
    if not _turn.acquire(timeout=WAIT_SECONDS):
        raise TimeoutError("others read long files")
    try:
        yield
    finally:
        _turn.release()


@functools.lru_cache(maxsize=256)
def _examine(check: Check, folder: Path, subject: str, _changed: tuple[tuple[str, int, int, int], ...]) -> str | None:
    try:
        check(folder, subject)
    except ModelUnusable as error:
        return str(error)
    return None


def _describe(path: Path) -> tuple[str, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return path.name, 0, 0, 0
    return path.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns
