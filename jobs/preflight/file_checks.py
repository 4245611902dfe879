"""Check the files of models and adapters, and cache the result until they change.

To parse a long header takes a gigabyte, and a second in which no other thread runs.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.errors import ModelUnusable
from sft.files.stamps import stamp_folder

LARGEST_JSON = 4 * 2**20  # bytes, 40,000 tensors; the plan and the job check longer headers and indexes
WAIT_SECONDS = 1.0
_lock = threading.Lock()

Check = Callable[[Path, str], None]


def find_fault(check: Check, folder: Path, subject: str) -> str | None:
    """The message of the error that `check` raises for a folder; None if it raises none. Raises TimeoutError."""
    stamp = stamp_folder(folder)
    with read_lock():
        return _run(check, folder, subject, stamp)


@contextmanager
def read_lock() -> Iterator[None]:
    """Let one thread at a time read long files. Raises TimeoutError after WAIT_SECONDS."""
    if not _lock.acquire(timeout=WAIT_SECONDS):
        raise TimeoutError("other threads are reading long files")
    try:
        yield
    finally:
        _lock.release()


@functools.lru_cache(maxsize=256)
def _run(check: Check, folder: Path, subject: str, _stamp: str) -> str | None:
    try:
        check(folder, subject)
    except ModelUnusable as error:
        return str(error)
    return None
