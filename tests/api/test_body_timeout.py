"""A body that does not come in time."""

import anyio
import pytest
from starlette.exceptions import HTTPException

from api.limits import STEADY_BYTES, BodyLimit
from jobs.network.connection_guard import PROGRESS


async def read_body(_scope, receive, _send):
    while (await receive()).get("more_body"):
        pass
    await receive()  # as a stream does, to hear of a client that goes


async def serve(messages, timeout_seconds=0.2):
    async def receive():
        seconds, message = messages.pop(0)
        await anyio.sleep(seconds)
        return message

    limit = BodyLimit(read_body, max_bytes=100, timeout_seconds=timeout_seconds)
    await limit({"type": "http", "headers": []}, receive, None)


def piece(more):
    return {"type": "http.request", "body": b"x", "more_body": more}


@pytest.mark.parametrize("messages", [[(9, piece(True))], [(0.06, piece(True))] * 9])
def test_a_body_that_stops_or_trickles_in_gets_408(messages):
    with pytest.raises(HTTPException, match=r"The body did not arrive within 0\.2 s") as refusal:
        anyio.run(serve, messages)

    assert refusal.value.status_code == 408
    assert refusal.value.headers == {"Connection": "close"}


def test_a_client_may_stay_as_long_as_it_likes_once_its_body_is_there():
    anyio.run(serve, [(0.05, piece(True)), (0.05, piece(False)), (3, {"type": "http.disconnect"})], 2.5)


def upload(seconds, sizes):
    """Serve an upload whose pieces, of these sizes, come after so many seconds each; returns how often it got on."""
    messages = [
        {"type": "http.request", "body": b"x" * size, "more_body": place < len(sizes) - 1}
        for place, size in enumerate(sizes)
    ]
    progress = []

    async def receive():
        if not messages:
            return {"type": "http.disconnect"}
        await anyio.sleep(seconds)
        return messages.pop(0)

    limit = BodyLimit(read_body, max_bytes=100, timeout_seconds=0.5, max_upload_bytes=4 * STEADY_BYTES)
    scope = {"type": "http", "method": "POST", "path": "/datasets", "headers": []}
    anyio.run(limit, scope | {PROGRESS: lambda: progress.append(1)}, receive, None)
    return len(progress)


def test_a_file_may_take_as_long_as_it_keeps_coming():
    assert upload(0.2, [STEADY_BYTES] * 4) == 4


def test_a_file_that_trickles_in_gets_408_and_one_that_is_too_large_413():
    with pytest.raises(HTTPException) as slow:
        upload(0.1, [1000] * 20)
    with pytest.raises(HTTPException) as large:
        upload(0, [STEADY_BYTES] * 5)
    assert (slow.value.status_code, large.value.status_code) == (408, 413)
