"""Query parameters of both job lists: filters and pages. Without any, a list has all jobs, as documented."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, WithJsonSchema

from api.dependencies import find_visible_owner
from jobs.engine.listing import JobFilters
from jobs.status import JobStatus
from jobs.vocabulary import PAGE_SIZE
from sft.config import Name, PathText
from sft.explanations import Matching
from tuneyard_wire.id_prefixes import PATTERN, RULE

CURSOR_HEADER = "X-Next-Cursor"
EARLIEST, LATEST = -62135596800, 253402300799  # epoch seconds of the years 1 to 9999
METADATA_PREFIX = "metadata."
MAX_PAIRS = 16


_TIME = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "format": "date-time"},
            {"type": "number", "minimum": EARLIEST, "maximum": LATEST},
        ]
    }
)

Model = Annotated[PathText | None, Query(description="Jobs on this base model.")]
Adapter = Annotated[Name | None, Query(description="Jobs that train this adapter, by its name in the registry.")]
Dataset = Annotated[PathText | None, Query(description="Jobs on this dataset: `name` or `name@revision`.")]
After = Annotated[
    Annotated[str, _TIME] | None, Query(description="Jobs created at this time or later: ISO 8601 or epoch seconds.")
]
Before = Annotated[
    Annotated[str, _TIME] | None, Query(description="Jobs created at this time or earlier: ISO 8601 or epoch seconds.")
]
Metadata = Annotated[
    Annotated[list[Annotated[str, WithJsonSchema({"type": "string", "pattern": ":"})]], Field(max_length=MAX_PAIRS)]
    | None,
    Query(description="`key:value`, repeated for several pairs; or `metadata.KEY=VALUE`."),
]
IdPrefix = Annotated[
    Annotated[str, Matching(PATTERN, RULE)] | None,
    Query(description="Prefix of the id, at least 4 characters. Jobs: only the last 200 by id."),
]
Limit = Annotated[
    int | None,
    Query(ge=1, le=PAGE_SIZE, description=f"Jobs per page; all if unset. `{CURSOR_HEADER}` and `Link` name the next."),
]
PageCursor = Annotated[str | None, Query(description=f"Start of the page: `{CURSOR_HEADER}` of the previous one.")]


def read_filters(
    request: Request,
    model: Model = None,
    adapter: Adapter = None,
    dataset: Dataset = None,
    created_after: After = None,
    created_before: Before = None,
    metadata: Metadata = None,
    id_prefix: IdPrefix = None,
) -> JobFilters:
    """Read all filters but the status, whose names differ between the APIs. Raises RequestValidationError.

    Jobs that the client may not see are filtered out.
    """
    return JobFilters(
        model=model,
        adapter=adapter,
        dataset=dataset,
        created_after=_read_time("created_after", created_after),
        created_before=_read_time("created_before", created_before),
        metadata=_read_metadata(request, metadata or []),
        owner=find_visible_owner(request),
        id_prefix=id_prefix,
    )


def statuses_of(name: str | None, names: Mapping[JobStatus, str]) -> frozenset[JobStatus] | None:
    """The statuses that an API's status name stands for; None for all."""
    return None if name is None else frozenset(status for status, known in names.items() if known == name)


def announce_next_page(request: Request, response: Response, cursor: str | None) -> None:
    """Set headers that name the next page; the body keeps its documented shape."""
    if cursor is not None:
        response.headers[CURSOR_HEADER] = cursor
        response.headers["Link"] = f'<{request.url.include_query_params(cursor=cursor)}>; rel="next"'


def _read_metadata(request: Request, pairs: list[str]) -> list[tuple[str, str]]:
    wanted: list[tuple[str, str]] = []
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon:
            raise _invalid("metadata", "must be key:value", pair)
        wanted.append((key, value))
    for name, value in request.query_params.multi_items():
        if name.startswith(METADATA_PREFIX):
            wanted.append((name.removeprefix(METADATA_PREFIX), value))
    return wanted


def _read_time(name: str, text: str | None) -> datetime | None:
    """Parse ISO 8601 (UTC if it has no zone) or epoch seconds. Raises RequestValidationError."""
    if text is None:
        return None
    try:
        if re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", text, re.ASCII) and not re.fullmatch(r"\d{8}", text):
            if not EARLIEST <= float(text) <= LATEST:
                raise ValueError("outside the years 1 to 9999")
            return datetime.fromtimestamp(float(text), UTC)
        time = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)  # a "+" that was not encoded
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise _invalid(name, "must be a time, as ISO 8601 or epoch seconds", text) from error


def _invalid(name: str, reason: str, value: Any) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("query", name), "msg": reason, "input": value}])
