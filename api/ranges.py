"""Read `Range` and `If-Range` (RFC 9110, 14), with which a client continues a download."""

import re

from fastapi import HTTPException

_ONE_RANGE = re.compile(r"bytes *= *(?:(?P<first>\d{1,18}) *- *(?P<last>\d{1,18})?|- *(?P<length>\d{1,18}))", re.ASCII)


def read_range(wanted: str | None, only_of: str | None, tag: str, size: int) -> tuple[int, int] | None:
    """Return the first byte to send and the end (exclusive); None for the whole file.

    Several ranges, other units and invalid ranges select the whole file, as the RFC allows.

    Args:
        wanted: The header `Range`.
        only_of: The header `If-Range`: the ETag of the file that the client has a part of.
        tag: The file's ETag.
        size: The file's size in bytes.

    Raises:
        HTTPException: 416, the range starts after the end of the file.
    """
    found = _ONE_RANGE.fullmatch(wanted.strip().lower()) if wanted else None
    if found is None or only_of not in (None, tag):
        return None
    if found["length"] is not None:
        start, stop = size - min(int(found["length"]), size), size
    else:
        start, stop = int(found["first"]), min(size, int(found["last"] or size) + 1)
        if found["last"] and int(found["last"]) < start:
            return None
    if start >= size:
        detail = f"Range {wanted} starts after the end of the file, which has {size} bytes"
        raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"})
    return start, stop
