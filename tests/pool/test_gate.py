"""The way to the store can be open, cut, silent and full."""

import httpx
import pytest

from tests.pool.gate import Gate, Way
from tests.receiver import Receiver


@pytest.fixture
def gate():
    receiver = Receiver(200)
    gate = Gate("127.0.0.1", ("127.0.0.1", int(receiver.url.rpartition(":")[2])))
    yield gate
    gate.close()
    receiver.close()


def post(gate, timeout=30):
    return httpx.post(gate.url, json={"job_id": "a"}, timeout=timeout, trust_env=False).status_code


def test_an_open_one_passes_everything_on(gate):
    assert [post(gate), post(gate)] == [200, 200]


def test_a_full_store_takes_nothing_until_it_has_room(gate):
    gate.way = Way.FULL
    assert post(gate) == 507
    gate.way = Way.OPEN
    assert post(gate) == 200


def test_one_that_is_cut_ends_connections(gate):
    gate.way = Way.CUT
    with pytest.raises(httpx.TransportError):
        post(gate)


def test_a_silent_one_leaves_callers_waiting(gate):
    gate.way = Way.SILENT
    with pytest.raises(httpx.ReadTimeout):
        post(gate, timeout=1)
