"""Limits on responses: a hostile server can neither fill memory or disk nor write binary data to a terminal."""

import codecs
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import cast

import httpx

from tuneyard_client.errors import ClientError, UnexpectedResponse

MAX_BYTES = 256 * 2**20  # of a response that is read into memory; 200 jobs of the largest kind take 60 MB
MAX_LINE_CHARACTERS = 16 * 2**20
PLAIN = "identity"  # the requested encoding: compressed data may expand a thousandfold
KEPT_FREE_BYTES = 64 * 2**20


class BoundedStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Pass on the bytes of a response. Raises UnexpectedResponse after MAX_BYTES."""

    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> None:
        self._stream = stream
        self._left = MAX_BYTES

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
            raise UnexpectedResponse(f"the response has more than {MAX_BYTES} bytes; is this a Tuneyard service?")
        return chunk


def bound(response: httpx.Response, is_whole: bool) -> None:
    """Limit a response before its body is read.

    Args:
        is_whole: The whole body is read into memory.

    Raises:
        UnexpectedResponse: it is compressed.
    """
    encoding = response.headers.get("Content-Encoding", PLAIN).strip().lower()
    if encoding != PLAIN:
        raise UnexpectedResponse(f"the response has the encoding {encoding!r:.50}, which was not requested")
    if is_whole:
        response.stream = BoundedStream(response.stream)


def new_decoder() -> codecs.IncrementalDecoder:
    """Return a UTF-8 decoder. The service sends nothing else, so the response's charset is ignored."""
    return codecs.getincrementaldecoder("utf-8")("replace")


def check_length(text: str) -> str:
    """Return an incomplete line. Raises UnexpectedResponse if it is longer than MAX_LINE_CHARACTERS."""
    if len(text) > MAX_LINE_CHARACTERS:
        raise UnexpectedResponse(f"a line has more than {MAX_LINE_CHARACTERS} characters; is this a Tuneyard service?")
    return text


def check_disk_space(length: str | None) -> None:
    """Check that a download of this Content-Length fits on the disk.

    Raises:
        UnexpectedResponse: the length is missing or not a number.
        ClientError: the disk has too little space.
    """
    if length is None or not (length.isascii() and length.isdigit()) or len(length) > len(str(2**63)):
        raise UnexpectedResponse("the archive has no valid Content-Length; is this a Tuneyard service?")
    if int(length) + KEPT_FREE_BYTES > shutil.disk_usage(tempfile.gettempdir()).free:
        raise ClientError(
            f"{tempfile.gettempdir()} has too little space for the archive of {length} bytes", code="disk_full"
        )
