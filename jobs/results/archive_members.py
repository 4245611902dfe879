"""Reads the files of an adapter for its archive, from disk or through MLflow's artifact proxy."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jobs.errors import AdapterNotReady
from jobs.mlflow_server import MlflowServer
from jobs.network.deadlines import READ_SECONDS, call_deadline, within
from jobs.results.object_store import StoredObject
from sft.errors import StackError
from sft.files.places import is_opened_in

CHUNK_BYTES = 1 << 20
SLOWEST_BYTES_A_SECOND = 256 * 1024  # a slower MLflow counts as down


@dataclass(frozen=True)
class Member:
    """A file to archive: on this machine, or elsewhere."""

    name: str
    size: int
    path: Path | None = None
    changed_ns: int = 0
    remote: "MlflowFile | StoredObject | None" = None
    root: Path | None = None  # the opened file must be in it, as a link may have replaced it

    def open(self) -> BinaryIO | None:
        """Open the file; None if it is elsewhere.

        Raises:
            AdapterNotReady: it is not the file that was listed.
            StackError: it can't be read.
        """
        if self.path is None:
            return None
        try:
            file = self.path.open("rb")
        except FileNotFoundError as error:
            raise self._changed() from error
        except OSError as error:
            raise StackError(f"the adapter's {self.name} can't be read ({error.strerror})") from error
        found = os.fstat(file.fileno())
        is_where_it_was = self.root is None or is_opened_in(file.fileno(), self.root)
        if (found.st_size, found.st_mtime_ns) != (self.size, self.changed_ns) or not is_where_it_was:
            file.close()
            raise self._changed()
        return file

    def read(self, file: BinaryIO | None, start: int = 0) -> Iterator[bytes]:
        """Yield the content from `start` on, of the opened file if there is one.

        Raises:
            AdapterNotReady: its length has changed.
        """
        left = self.size - start
        if left == 0:
            return
        if file:
            file.seek(start)
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b"") if file else _skip(self._download(), start):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
        if left != 0:
            raise self._changed()

    def _changed(self) -> AdapterNotReady:
        return AdapterNotReady(f"{self.name} changed while it was read; try again")

    def _download(self) -> Iterator[bytes]:
        return self.remote.read(READ_SECONDS + self.size / SLOWEST_BYTES_A_SECOND) if self.remote else iter(())


@dataclass(frozen=True)
class MlflowFile:
    """A file at a URL of MLflow's REST interface."""

    server: MlflowServer
    place: str

    def read(self, seconds: float) -> Iterator[bytes]:
        """Yield the content; waiting for it may take `seconds` in total. Raises httpx.HTTPError, StackError."""
        with self.server.open() as client:
            with self.server.watch(), call_deadline():
                response = client.send(client.build_request("GET", self.place), stream=True).raise_for_status()
            with closing(response):
                yield from within(response.iter_bytes(), seconds, "MLflow")


def _skip(chunks: Iterator[bytes], start: int) -> Iterator[bytes]:
    for chunk in chunks:
        if left := chunk[start:]:
            yield left
        start = max(0, start - len(chunk))
