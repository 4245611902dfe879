"""Pieces of files that arrive: one at a time for a file, and no more bytes than announced."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from jobs.errors import UploadConflict, UploadNotFound

LOCK_SECONDS = 10.0


class PieceWriter:
    """Takes the bytes of a file, up to the announced number."""

    def __init__(self, file: FileIO, most_bytes: int, path: str) -> None:
        self._file = file
        self._left = most_bytes
        self._path = path

    def write(self, content: bytes) -> None:
        """Write the next bytes. Raises UploadConflict for more than announced."""
        self._left -= len(content)
        if self._left < 0:
            raise UploadConflict(f"{self._path} has more bytes than were announced; announce it again")
        left = memoryview(content)
        while left:  # the file is not buffered, and may take a part
            left = left[self._file.write(left) :]


@contextmanager
def finding_upload() -> Iterator[None]:
    """Raise UploadNotFound in place of the errors that an upload causes which is removed meanwhile."""
    try:
        yield
    except FileNotFoundError as error:
        raise UploadNotFound("the upload was removed meanwhile; announce the files again (POST /models)") from error


@contextmanager
def locked(path: Path, busy: str, wait: bool = False) -> Iterator[FileIO]:
    """Open a file, which is created, for one process and thread at a time. Raises UploadConflict if another has it."""
    while True:
        with FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            if wait:
                fcntl.flock(file, fcntl.LOCK_EX)
            else:
                _lock_soon(file, busy)
            if wait or _is_at(file, path):
                yield file
                return
            # Who had it has moved or removed it: nobody would see what is written.


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock_soon(file: FileIO, busy: str) -> None:
    """Lock the file once the request that has it ends, as one does whose connection was lost."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UploadConflict(busy) from error
            time.sleep(0.1)
        else:
            return
