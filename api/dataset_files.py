"""The file of a dataset's version as a response: whole, or a range of it."""

import base64
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Header, Request, Response
from fastapi.responses import StreamingResponse

from api.head import is_head
from api.ranges import read_range
from jobs.own_data.registry import OwnRegistry
from jobs.own_data.version import DataVersion
from jobs.service.job_service import JobService
from sft.errors import DatasetNotFound

CHUNK_BYTES = 2**18
BINARY = "application/octet-stream"

DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
        "description": "The file as it was added; `X-Checksum-SHA256` is the SHA-256 of its bytes.",
    },
    206: {"description": "The requested `Range` of the file.", "content": {BINARY: {}}},
    416: {"description": "`Range` starts after the end of the file."},
}
WantedRange = Annotated[str | None, Header(alias="Range", description="One range of bytes, `bytes=1048576-`.")]
RangeOf = Annotated[
    str | None, Header(alias="If-Range", description="`ETag` of the file that the client has a part of.")
]


def send_file(
    request: Request, version: DataVersion, path: Path, wanted: str | None = None, only_of: str | None = None
) -> Response:
    """The response with a version's file, or a range of it. Raises HTTPException 416."""
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(version.size),
        "Content-Disposition": f'attachment; filename="{version.file}"',
        "X-Checksum-SHA256": version.sha256,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(version.sha256)).decode()}:",  # RFC 9530
        "ETag": f'"{version.sha256}"',
        "X-Content-Type-Options": "nosniff",
    }
    piece = read_range(wanted, only_of, headers["ETag"], version.size)
    start, stop = piece or (0, version.size)
    if piece:
        headers |= {"Content-Length": str(stop - start), "Content-Range": f"bytes {start}-{stop - 1}/{version.size}"}
    chunks = _read(path, start, stop)
    first = next(chunks)  # opens the file: a missing one is an error response, not a broken connection
    content = () if is_head(request.scope) else itertools.chain([first], chunks)
    return StreamingResponse(iter(content), 206 if piece else 200, headers, BINARY)


def locate_file(service: JobService, version: DataVersion) -> Path:
    """The file of a version. Raises DatasetNotFound if it is missing."""
    path = OwnRegistry(service.settings.home).locate(version)
    if not path.exists():
        raise DatasetNotFound(f"the file of dataset {version.reference} is missing; add it again")
    return path


def _read(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            chunk = file.read(min(CHUNK_BYTES, stop - start))
            if not chunk:
                raise OSError(f"{path} is shorter than it was")
            start += len(chunk)
            yield chunk
