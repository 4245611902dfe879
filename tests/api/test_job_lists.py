"""A list of all jobs is sent page by page: what the API holds does not grow with it, and what breaks off is seen to."""

import asyncio
from threading import Thread
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

import api.job_lists
from api.head import HeadAsGet
from api.job_lists import write_job_list
from jobs.engine.listing import JobFilters
from jobs.service.job_reader import JobPage
from sft.errors import StackError
from tests.conftest import free_port, wait_until

PAGE = 3


class Pages:
    """A service with this many jobs, in order; the cursor is the number of the next one."""

    def __init__(self, count, empty=(), fails_at=None):
        self.count, self.empty, self.fails_at = count, empty, fails_at
        self.asked = []

    def list_jobs(self, wanted, limit, cursor):
        start = int(cursor or 0)
        self.asked.append((start, limit))
        if start == self.fails_at:
            raise StackError("Prefect does not respond")
        stop = min(start + limit, self.count)
        jobs = [] if start in self.empty else [SimpleNamespace(id=number) for number in range(start, stop)]
        return JobPage(jobs, str(stop) if stop < self.count else None)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(api.job_lists, "PAGE_SIZE", PAGE)


def open_client(service, **frame):
    app = FastAPI()

    @app.get("/list")
    def read(request: Request, limit: int | None = None, cursor: str | None = None):
        return write_job_list(request, service, JobFilters(), limit, cursor, lambda job: {"id": job.id}, **frame)

    app.add_middleware(HeadAsGet)
    return TestClient(app)


@pytest.mark.parametrize("count", [0, 1, PAGE, PAGE + 1, 3 * PAGE, 3 * PAGE + 2])
def test_the_whole_list_is_that_of_its_pages(count):
    service = Pages(count)
    response = open_client(service).get("/list")
    assert response.json() == [{"id": number} for number in range(count)]
    assert response.headers["content-type"] == "application/json"
    assert service.asked == [(start, PAGE) for start in range(0, max(count, 1), PAGE)]
    assert ("content-length" in response.headers) == (count <= PAGE)
    assert "link" not in response.headers


def test_from_a_cursor_on_too():
    assert [job["id"] for job in open_client(Pages(8)).get("/list", params={"cursor": "2"}).json()] == [*range(2, 8)]


def test_a_page_is_as_before():
    response = open_client(Pages(8)).get("/list", params={"limit": 5})
    assert [job["id"] for job in response.json()] == [0, 1, 2, 3, 4]
    assert 'cursor=5>; rel="next"' in response.headers["link"]


@pytest.mark.parametrize("empty", [(0,), (3,), (6,), (0, 3), (3, 6), (0, 3, 6)])
def test_a_page_without_jobs_leaves_no_comma(empty):
    response = open_client(Pages(9, empty), frame=(b'{"jobs":[', b"]}")).get("/list")
    expected = [number for number in range(9) if number // PAGE * PAGE not in empty]
    assert [job["id"] for job in response.json()["jobs"]] == expected


def test_no_page_is_read_before_the_one_ahead_of_it_is_sent():
    service = Pages(100)
    request = SimpleNamespace(scope={}, url="http://x/list")
    response = write_job_list(request, service, JobFilters(), None, None, lambda job: {"id": job.id})

    async def take(chunks: int) -> bytes:
        return b"".join([await anext(response.body_iterator) for _ in range(chunks)])

    assert service.asked == [(0, PAGE)]
    assert asyncio.run(take(4)) == b'[{"id":0},{"id":1},{"id":2},{"id":3},{"id":4},{"id":5},{"id":6},{"id":7},{"id":8}'
    assert service.asked == [(0, PAGE), (3, PAGE), (6, PAGE)]


def test_a_list_that_can_not_be_begun_has_the_status_of_its_error():
    with pytest.raises(StackError):
        open_client(Pages(9, fails_at=0)).get("/list")


def test_a_list_that_breaks_off_does_not_look_whole():
    """Its connection is closed without the end of a chunked body, which clients tell from a whole one."""
    port = free_port()
    app = open_client(Pages(9, fails_at=6)).app
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 60)
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            httpx.get(f"http://127.0.0.1:{port}/list", timeout=60)
    finally:
        server.should_exit = True
        thread.join()


def test_the_headers_alone_take_one_page():
    service = Pages(100)
    response = open_client(service).head("/list")
    assert (response.status_code, response.content) == (200, b"")
    assert "content-length" not in response.headers
    assert service.asked == [(0, PAGE)]
