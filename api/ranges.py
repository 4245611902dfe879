"""The part of a file that `Range` and `If-Range` ask for (RFC 9110, 14): to go on with a download that broke."""

import re

from fastapi import HTTPException

_ONE_RANGE = re.compile(r"bytes *= *(?:(?P<first>\d{1,18}) *- *(?P<last>\d{1,18})?|- *(?P<length>\d{1,18}))", re.ASCII)


def read_range(wanted: str | None, only_of: str | None, tag: str, size: int) -> tuple[int, int] | None:
    """The first byte to send and the one after the last; None for all of them.

    Several ranges, other units and what is not a range are answered with everything, as servers may.

    Args:
        wanted: `Range`.
        only_of: `If-Range`: the tag of the file that the client has begun with.
        tag: of the file as it is.
        size: its bytes.

    Raises:
        HTTPException: 416, the file ends before.
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
        detail = f"Range {wanted} begins after the file, which has {size} bytes"
        raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"})
    return start, stop
