"""Followed logs over a stand-in for Prefect's log: asked for once whoever follows, and told whole to each."""

import asyncio
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import Log
from prefect.client.schemas.sorting import LogSort

from api import log_channels
from api.log_channels import LogHub
from api.streaming import send_log
from jobs.errors import JobNotFound
from jobs.service.job import Job
from jobs.status import JobStatus
from sft.errors import StackError

LISTENERS = 30


class Logs:
    """Prefect's log, in memory, with what else a LogHub needs of a JobService."""

    def __init__(self):
        self.client = self
        self.asked = 0
        self.is_away = False
        self._logs = []
        self._jobs = {}
        self._lock = threading.Lock()

    def create(self):
        created_at = datetime.now(UTC)
        job = Job(uuid4(), "job", JobStatus.RUNNING, "normal", None, {}, created_at, created_at, None)
        self._jobs[job.id] = job
        return job

    def get(self, job_id, owner=None):
        if job_id not in self._jobs:
            raise JobNotFound(f"Job {job_id} not found")
        return self._jobs[job_id]

    def end(self, job, ago_seconds=0):
        ended_at = datetime.now(UTC) - timedelta(seconds=ago_seconds)
        self._jobs[job.id] = replace(self._jobs[job.id], status=JobStatus.COMPLETED, ended_at=ended_at)
        return self._jobs[job.id]

    def forget(self, job):
        del self._jobs[job.id]

    def run_ids(self, job_id):
        return [job_id]

    def write(self, job, *messages, late_seconds=0.0):
        with self._lock:
            for message in messages:
                timestamp = datetime.now(UTC) - timedelta(seconds=late_seconds)
                fields = {"name": "x", "level": 20, "message": str(message), "timestamp": timestamp}
                self._logs.append(Log(id=uuid4(), flow_run_id=job.id, **fields))

    def read_logs(self, wanted, limit, offset, sort):
        self.asked += 1
        if self.is_away:
            raise StackError("Prefect is away")
        with self._lock:
            after = wanted.timestamp.after_ if wanted.timestamp else None
            found = [log for log in self._logs if log.flow_run_id in wanted.flow_run_id.any_]
        found = [log for log in found if after is None or log.timestamp >= after]
        found.sort(key=lambda log: log.timestamp, reverse=sort is LogSort.TIMESTAMP_DESC)
        return found[offset : offset + limit]


@pytest.fixture
def logs(monkeypatch):
    monkeypatch.setattr("jobs.results.logs.LATE_SECONDS", 0.6)
    monkeypatch.setattr("jobs.results.logs.STATE_SECONDS", 0.2)
    monkeypatch.setattr("api.log_channels.POLL_SECONDS", 0.2)
    monkeypatch.setattr("api.log_channels.RETRY_SECONDS", 0.2)
    monkeypatch.setattr("api.streaming.RETRY_SECONDS", 0.2)
    return Logs()


@pytest.fixture
def job(logs):
    return logs.create()


async def follow(hub, logs, job, into, tail=None):
    async for lines in send_log(hub, logs, job, tail):
        into += [line.message for line in lines]


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def test_a_log_is_asked_for_once_however_many_follow_it(logs, job):
    async def talk():
        hub, heard = LogHub(), [[] for _ in range(LISTENERS)]
        logs.write(job, "one", "two")
        tasks = [asyncio.create_task(follow(hub, logs, job, into)) for into in heard]
        await until(lambda: all(len(into) == 2 for into in heard))
        await until(lambda: hub.listeners == LISTENERS)
        asked, began = logs.asked, time.monotonic()
        for number in range(5):
            logs.write(job, f"new {number}")
            logs.write(job, f"late {number}", late_seconds=0.3)
            await asyncio.sleep(0.2)
        assert logs.asked - asked <= (time.monotonic() - began) / 0.2 + 2
        late = []
        tasks.append(asyncio.create_task(follow(hub, logs, job, late, tail=1)))
        await until(lambda: late)
        logs.write(job, "last")
        logs.end(job)
        await asyncio.gather(*tasks)
        assert hub.listeners == 0
        return heard, late

    heard, late = asyncio.run(talk())
    expected = sorted(["one", "two", "last", *(f"{kind} {n}" for n in range(5) for kind in ("new", "late"))])
    assert [sorted(messages) for messages in heard] == [expected] * LISTENERS
    assert late[-1] == "last"
    assert len(late) == len(set(late)) <= 3


def test_a_listener_that_does_not_read_misses_nothing_and_holds_up_nobody(logs, job, monkeypatch):
    monkeypatch.setattr(log_channels, "KEPT_LINES", 10)

    async def talk():
        hub, quick, slow = LogHub(), [], []
        task = asyncio.create_task(follow(hub, logs, job, quick))
        reading = send_log(hub, logs, job, None)
        logs.write(job, "first")
        slow += [line.message for line in await anext(reading)]
        for first in range(0, 100, 20):
            logs.write(job, *range(first, first + 20))
            await until(lambda seen=first + 21: len(quick) == seen)
        logs.end(job)
        async for lines in reading:
            slow += [line.message for line in lines]
        await task
        return quick, slow

    quick, slow = asyncio.run(talk())
    assert quick == slow == ["first", *map(str, range(100))]


def test_a_prefect_that_is_away_is_waited_for(logs, job):
    async def talk():
        hub, heard = LogHub(), []
        logs.write(job, "before")
        task = asyncio.create_task(follow(hub, logs, job, heard))
        await until(lambda: heard)
        logs.is_away = True
        logs.write(job, "meanwhile")
        await asyncio.sleep(0.5)
        logs.is_away = False
        await until(lambda: len(heard) == 2)
        logs.end(job)
        await task
        return heard

    assert asyncio.run(talk()) == ["before", "meanwhile"]


@pytest.mark.parametrize("tail", [None, 2, 0])
def test_the_log_of_a_job_that_ended_long_ago_is_sent_at_once(logs, job, tail, monkeypatch):
    monkeypatch.setattr("jobs.results.logs.LATE_SECONDS", 60)  # for so long it would be followed
    logs.write(job, "one", "two", "three")
    ended, heard = logs.end(job, ago_seconds=150), []
    began = time.monotonic()
    asyncio.run(follow(LogHub(), logs, ended, heard, tail))
    assert heard == ["one", "two", "three"][3 - (3 if tail is None else tail) :]
    assert time.monotonic() - began < 30


def test_a_job_that_is_gone_ends_its_log_and_one_who_leaves_ends_the_work(logs, job):
    async def talk():
        hub, heard = LogHub(), []
        logs.write(job, "one")
        tasks = [asyncio.create_task(follow(hub, logs, job, heard)) for _ in range(3)]
        await until(lambda: len(heard) == 3)
        tasks[0].cancel()
        await until(lambda: hub.listeners == 2)
        logs.forget(job)
        await asyncio.gather(*tasks[1:])
        assert hub.listeners == 0
        asked = logs.asked
        await asyncio.sleep(0.5)
        assert logs.asked == asked

    asyncio.run(talk())
