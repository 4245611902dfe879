"""Read responses within limits: a server that is not Tuneyard's can fill neither memory nor disk, nor a terminal with
what is not text."""

import codecs
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import cast

import httpx

from tuneyard_client.errors import ClientError, UnexpectedAnswer

MOST_BYTES = 256 * 2**20  # of an answer that is read whole: 200 jobs of the largest kind have 60 MB
LINE_CHARACTERS = 16 * 2**20
PLAIN = "identity"  # asked for: what is packed may be a thousand times as long
KEPT_FREE_BYTES = 64 * 2**20


class BoundedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The bytes of an answer, up to MOST_BYTES. Raises UnexpectedAnswer."""

    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> None:
        self._stream = stream
        self._left = MOST_BYTES

    def __iter__(self) -> Iterator[bytes]:
        for chunk in cast(httpx.SyncByteStream, self._stream):
            yield self._count(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in cast(httpx.AsyncByteStream, self._stream):
            yield self._count(chunk)

    def close(self) -> None:
        cast(httpx.SyncByteStream, self._stream).close()

    async def aclose(self) -> None:
        await cast(httpx.AsyncByteStream, self._stream).aclose()

    def _count(self, chunk: bytes) -> bytes:
        self._left -= len(chunk)
        if self._left < 0:
            raise UnexpectedAnswer(f"the answer has more than {MOST_BYTES} bytes; is this a Tuneyard service?")
        return chunk


def bound(answer: httpx.Response, is_whole: bool) -> None:
    """Before any of the body is read; `is_whole`: all of it is read into memory. Raises UnexpectedAnswer."""
    encoding = answer.headers.get("Content-Encoding", PLAIN).strip().lower()
    if encoding != PLAIN:
        raise UnexpectedAnswer(f"the answer is packed with {encoding!r:.50}, which was not asked for")
    if is_whole:
        answer.stream = BoundedStream(answer.stream)


def new_decoder() -> codecs.IncrementalDecoder:
    """Bytes to text, whatever encoding the answer names: the service has one only."""
    return codecs.getincrementaldecoder("utf-8")("replace")


def check_length(text: str) -> str:
    """A line that is not whole yet. Raises UnexpectedAnswer when it is longer than any."""
    if len(text) > LINE_CHARACTERS:
        raise UnexpectedAnswer(f"a line has more than {LINE_CHARACTERS} characters; is this a Tuneyard service?")
    return text


def check_room(announced: str | None) -> None:
    """Whether what is to be downloaded has a length, and fits on the disk. Raises UnexpectedAnswer or ClientError."""
    if announced is None or not (announced.isascii() and announced.isdigit()) or len(announced) > len(str(2**63)):
        raise UnexpectedAnswer("the archive comes without its length; is this a Tuneyard service?")
    if int(announced) + KEPT_FREE_BYTES > shutil.disk_usage(tempfile.gettempdir()).free:
        raise ClientError(
            f"the archive has {announced} bytes, for which {tempfile.gettempdir()} has no room", code="disk_full"
        )
