"""A job's adapter as a reproducible tar archive, whose checksum is known before it is sent."""

import functools
import hashlib
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import httpx

from jobs.network.failures import describe_failure
from jobs.results.archive_members import Member
from sft.errors import StackError

_LOCKS = [threading.Lock() for _ in range(16)]  # so that two requests do not hash the same adapter


@dataclass(frozen=True)
class Archive:
    """An uncompressed tar archive, without owners and times so that it is reproducible; `name` is its file name."""

    name: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Length in bytes."""
        content = sum(len(self._header(member)) + _padded(member.size, tarfile.BLOCKSIZE) for member in self.members)
        return _padded(content + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `stop` in chunks; nothing is held in memory.

        All files are opened before the first chunk, so files that are replaced later are still sent unchanged.
        """
        stop = self.size if stop is None else stop
        with ExitStack() as opened:
            files = [file and opened.enter_context(file) for file in (member.open() for member in self.members)]
            for place, chunk in self._pieces(files, start):
                if place >= stop:
                    return
                if wanted := chunk[max(0, start - place) : stop - place]:
                    yield wanted

    def _pieces(self, files: Sequence[BinaryIO | None], start: int) -> Iterator[tuple[int, bytes]]:
        """Yield the archive's pieces with their offsets; contents before `start` are not read."""
        place = 0
        for member, file in zip(self.members, files, strict=True):
            header = self._header(member)
            yield place, header
            content = place + len(header)
            place = min(max(start, content), content + member.size)
            for chunk in member.read(file, place - content):
                yield place, chunk
                place += len(chunk)
            padding = bytes(-member.size % tarfile.BLOCKSIZE)
            yield place, padding
            place += len(padding)
        yield place, bytes(self.size - place)

    @staticmethod
    def _header(member: Member) -> bytes:
        info = tarfile.TarInfo(member.name)
        info.size, info.mode = member.size, 0o644
        return info.tobuf(tarfile.PAX_FORMAT)


class Download(NamedTuple):
    """An archive to send, and its SHA-256 in hex."""

    archive: Archive
    sha256: str


def checksum(archive: Archive) -> str:
    """SHA-256 of the archive in hex; reads every file once, and is cached until a file changes.

    Raises:
        AdapterNotReady: a file changed meanwhile.
        StackError: a file can't be fetched.
    """
    with _LOCKS[hash(archive) % len(_LOCKS)]:
        return _checksum(archive)


@functools.lru_cache(maxsize=64)
def _checksum(archive: Archive) -> str:
    digest = hashlib.sha256()
    try:
        for chunk in archive.read():
            digest.update(chunk)
    except (OSError, httpx.HTTPError) as error:
        raise StackError(f"the adapter can't be read ({describe_failure(error)})") from error
    return digest.hexdigest()


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block
