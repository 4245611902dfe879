"""Reject valid JSON and URLs that can't be stored: values that PostgreSQL or UTF-8 can't represent, duplicate keys
(of which a parser would silently drop one), and too deep or too many values."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError

from sft.config import LIST_ENTRIES

Place = tuple[str | int, ...]
Problem = tuple[Place, str, Any]

URL_CHARACTERS = 32 * 1024  # the longest cursor has 14,000
MAX_DEPTH = 64
MAX_VALUES = 20_000  # of a body


async def check_values(request: Request) -> None:
    """Reject values that can't be stored. A dependency of all routes. Raises RequestValidationError."""
    problems = [*_check_url(request)]
    if not problems and getattr(request.scope["route"], "body_field", None) is not None:
        content = await request.body()
        problems = await run_in_threadpool(_check_body, content)  # keeps the event loop free
    if problems:
        raise RequestValidationError(
            [{"type": "value_error", "loc": place, "msg": reason, "input": value} for place, reason, value in problems]
        )


def _check_body(content: bytes) -> list[Problem]:
    try:
        body = json.loads(content) if content else None
        if problem := _find_excess(body):
            return [problem]
        return [*_check(body, ("body",)), *_check_repetitions(content)]
    except (ValueError, RecursionError):  # FastAPI reports what is not JSON
        return []


def _find_excess(body: Any) -> Problem | None:
    """Find a value that is nested too deep or has too many entries, or the value that exceeds the total.

    Iterative, since a deeply nested body would exceed the recursion limit.
    """
    left: list[tuple[Any, Place]] = [(body, ("body",))]
    count = 0
    while left:
        value, place = left.pop()
        if len(place) > MAX_DEPTH:
            return place[:2], f"must not be nested more than {MAX_DEPTH} deep", "..."  # its repr would be as deep
        if isinstance(value, dict | list):
            count += len(value)
            if len(value) > LIST_ENTRIES:
                return place, f"must have at most {LIST_ENTRIES} entries, it has {len(value)}", "..."
            if count > MAX_VALUES:
                return place[:2], f"must hold at most {MAX_VALUES} values in total", "..."
            items = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(item, (*place, key)) for key, item in items]
    return None


def _check_url(request: Request) -> Iterator[Problem]:
    if (length := len(request.scope["path"]) + len(request.scope["query_string"])) > URL_CHARACTERS:
        yield ("query",), f"the URL must have at most {URL_CHARACTERS} characters, it has {length}", None
        return
    for name, value in [*request.path_params.items(), *request.query_params.multi_items()]:
        place = "path" if name in request.path_params else "query"
        if "\0" in name or "\0" in str(value):
            yield (place, name), "must not hold a NUL character", value


def _check_repetitions(content: bytes) -> list[Problem]:
    """Find keys that an object has more than once, at any depth."""
    repeated: list[str] = []

    def read_object(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            repeated.extend(key for key, count in Counter(keys).items() if count > 1)

    if content:
        json.loads(content, object_pairs_hook=read_object)
    return [(("body",), f"{key} is given more than once; give it once", None) for key in dict.fromkeys(repeated)]


def _check(body: Any, root: Place) -> Iterator[Problem]:
    """Find what can't be stored in a JSON value."""
    left: list[tuple[Any, Place]] = [(body, root)]
    while left:
        value, place = left.pop()
        if isinstance(value, dict):
            left += [(item, (*place, key)) for key, item in value.items()]
            for key in value:
                if reason := _explain_text(key):
                    yield (*place, "a key"), reason, key
        elif isinstance(value, list):
            left += [(item, (*place, index)) for index, item in enumerate(value)]
        elif reason := _explain(value):
            yield place, reason, value


def _explain(value: Any) -> str | None:
    if isinstance(value, str):
        return _explain_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and abs(value) > sys.float_info.max:  # other JSON parsers read numbers as doubles
        return "must fit into a double"
    return None


def _explain_text(text: str) -> str | None:
    if "\0" in text:
        return "must not hold a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "must not hold half of a surrogate pair"
    return None
