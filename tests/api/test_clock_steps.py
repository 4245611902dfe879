"""The machine's clock set by an hour, either way: limits and keys of the API go by durations."""

import time

import pytest
from starlette.exceptions import HTTPException

from api.limits import RequestCounter, parse_rate_limit
from jobs.clients.keys import ApiKeyCache, ApiKeySnapshot

HOUR = 3600


class Clock:
    """The real one, which may be set."""

    def __init__(self, monkeypatch):
        self.ahead, real = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_a_rate_limit_locks_nobody_out_and_still_holds(clock, step):
    counter = RequestCounter(parse_rate_limit("3/minute"), wall=lambda: time.time())
    for _ in range(3):
        counter.count("a")
    with pytest.raises(HTTPException):
        counter.count("a")
    clock.ahead = step
    for _ in range(3):
        counter.count("a")
    with pytest.raises(HTTPException) as refused:
        counter.count("a")
    assert int(refused.value.headers["Retry-After"]) <= 61


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_a_revoked_key_works_no_longer_than_before(clock, tmp_path, monkeypatch, step):
    read = []
    cache = ApiKeyCache(lambda: (read.append(1), ApiKeySnapshot({}, is_open=False))[1], tmp_path / "marker")
    cache.refresh(None)
    clock.ahead = step
    assert cache.fresh_snapshot(None) is not None
    monkeypatch.setattr("jobs.clients.keys.TTL_SECONDS", 0.2)
    time.sleep(0.25)
    assert cache.fresh_snapshot(None) is None
    cache.refresh(None)
    assert len(read) == 2
