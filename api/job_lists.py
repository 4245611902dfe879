"""Write lists of jobs: a page as one response, the whole list as a stream that holds one page at a time."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from api.head import is_head
from api.job_query import announce_next_page
from api.responses import to_json
from jobs.engine.listing import JobFilters
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.vocabulary import PAGE_SIZE

JSON = "application/json"


def write_job_list(
    request: Request,
    service: JobService,
    wanted: JobFilters,
    limit: int | None,
    cursor: str | None,
    describe: Callable[[Job], dict[str, Any]],
    frame: tuple[bytes, bytes] = (b"[", b"]"),
) -> Response:
    """Write the page after the cursor, or without a limit all jobs after it.

    If a part of a list can't be read, the response is cut off: it is not valid JSON, and the connection is closed
    without an end.

    Args:
        frame: What stands before and after the jobs.
    """
    page = service.list_jobs(wanted, limit or PAGE_SIZE, cursor)
    opening, closing = frame
    if limit is not None or page.next_cursor is None:
        response = Response(b"".join((opening, _write_page(page.jobs, describe), closing)), media_type=JSON)
        announce_next_page(request, response, page.next_cursor)
        return response
    following = _read_pages(service, wanted, page.next_cursor)
    parts = _separate(_write_page(jobs, describe) for jobs in itertools.chain([page.jobs], following))
    chunks = () if is_head(request.scope) else itertools.chain([opening], parts, [closing])
    return StreamingResponse(iter(chunks), media_type=JSON)


def _read_pages(service: JobService, wanted: JobFilters, cursor: str | None) -> Iterator[list[Job]]:
    while cursor is not None:
        page = service.list_jobs(wanted, PAGE_SIZE, cursor)
        yield page.jobs
        cursor = page.next_cursor


def _write_page(jobs: list[Job], describe: Callable[[Job], dict[str, Any]]) -> bytes:
    return to_json([describe(job) for job in jobs])[1:-1]


def _separate(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Put commas between the parts; a page may be empty, as its jobs have another status by now."""
    is_first = True
    for part in parts:
        if part:
            yield part if is_first else b"," + part
            is_first = False
