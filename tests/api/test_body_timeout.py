"""A body that does not come in time."""

import anyio
import pytest
from starlette.exceptions import HTTPException

from api.limits import BodyLimit


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
