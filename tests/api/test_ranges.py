"""What part of a file a client gets that asks for one."""

import pytest
from fastapi import HTTPException

from api.ranges import read_range

TAG = '"abc"'


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-", (0, 1000)),
        ("bytes=0-0", (0, 1)),
        ("bytes=999-", (999, 1000)),
        ("bytes=5-9999", (5, 1000)),
        ("Bytes = 10 - 19", (10, 20)),
        ("bytes=-1", (999, 1000)),
        ("bytes=-9999", (0, 1000)),
    ],
)
def test_one_range_is_served(wanted, part):
    assert read_range(wanted, None, TAG, 1000) == part
    assert read_range(wanted, TAG, TAG, 1000) == part
    assert read_range(wanted, '"of yesterday"', TAG, 1000) is None
    assert read_range(wanted, f"W/{TAG}", TAG, 1000) is None


@pytest.mark.parametrize(
    "wanted", [None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=9-5", "bytes=1 0-2 0",
               "bytes=0-1,5-9", "rows=0-1",
               "bytes=0x1-2", "bytes=٣-", "bytes=" + "9" * 5000 + "-"]
)  # fmt: skip
def test_whatever_else_is_asked_for_brings_all_of_it(wanted):
    assert read_range(wanted, None, TAG, 1000) is None


@pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=123456789012345678-"])
def test_a_range_behind_the_end_says_where_that_is(wanted):
    with pytest.raises(HTTPException, match="starts after the end of the file, which has 1000 bytes") as caught:
        read_range(wanted, None, TAG, 1000)
    assert (caught.value.status_code, caught.value.headers) == (416, {"Content-Range": "bytes */1000"})
