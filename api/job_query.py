"""What both lists of jobs can be asked: filters and pages. With no parameter they show everything, as documented."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, WithJsonSchema

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
Adapter = Annotated[Name | None, Query(description="Jobs that make this adapter, by its name in the registry.")]
Dataset = Annotated[PathText | None, Query(description="Jobs on this dataset: `name` or `name@revision`.")]
After = Annotated[
    Annotated[str, _TIME] | None, Query(description="Jobs of this time or later: ISO 8601 or epoch seconds.")
]
Before = Annotated[
    Annotated[str, _TIME] | None, Query(description="Jobs of this time or earlier: ISO 8601 or epoch seconds.")
]
Metadata = Annotated[
    Annotated[list[Annotated[str, WithJsonSchema({"type": "string", "pattern": ":"})]], Field(max_length=MAX_PAIRS)]
    | None,
    Query(description="`key:value`, several times for several pairs; or `metadata.KEY=VALUE`."),
]
IdPrefix = Annotated[
    Annotated[str, Matching(PATTERN, RULE)] | None,
    Query(description="Those whose ids begin so, 4 characters at least; of jobs the 200 that come last by their ids."),
]
Limit = Annotated[
    int | None,
    Query(ge=1, le=PAGE_SIZE, description=f"Jobs a page; all if unset. `{CURSOR_HEADER}` and `Link` name the next."),
]
PageCursor = Annotated[str | None, Query(description=f"Where the page starts: `{CURSOR_HEADER}` of the one before.")]


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
    """The filters of a list's query, but for the status, whose words differ. Raises RequestValidationError."""
    return JobFilters(
        model=model,
        adapter=adapter,
        dataset=dataset,
        created_after=_read_time("created_after", created_after),
        created_before=_read_time("created_before", created_before),
        metadata=_read_metadata(request, metadata or []),
        id_prefix=id_prefix,
    )


def statuses_of(word: str | None, words: Mapping[JobStatus, str]) -> frozenset[JobStatus] | None:
    """The statuses a word of an interface stands for; None for all."""
    return None if word is None else frozenset(status for status, known in words.items() if known == word)


def announce_next_page(request: Request, response: Response, cursor: str | None) -> None:
    """Say in headers where the next page is, so that the body keeps its documented shape."""
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
    """ISO 8601 (UTC if it names no zone) or epoch seconds."""
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


def _invalid(name: str, why: str, value: Any) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("query", name), "msg": why, "input": value}])
