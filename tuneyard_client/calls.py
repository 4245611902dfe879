"""Requests as values, with the function that parses the response. Both clients share them: nothing is sent here."""

import json
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from tuneyard_client.errors import InvalidRequest, UnexpectedResponse
from tuneyard_client.models import Config, JobFilters
from tuneyard_client.reading import read_model, read_models, validate
from tuneyard_wire.deliveries import Delivery
from tuneyard_wire.fields import SftOptions, Strategy
from tuneyard_wire.jobs import Cancelled, Queue, Submitted, TrainJob
from tuneyard_wire.plan import Plan
from tuneyard_wire.records import Checkpoint, LogLine, Metrics

T = TypeVar("T")
PAGE_SIZE = 200
MAX_EMPTY_PAGES = 100
CURSOR_HEADER = "X-Next-Cursor"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request.

    Attributes:
        read: Parses the response.
        is_repeatable: Sending it twice has the same effect as sending it once.
        is_endless: The response may be silent for any length of time, so there is no read timeout.
        upload: A file that is sent as the field `file` of a form, whose other fields `body` has.
        content: A body that is sent as it is, in place of `body` as JSON.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = False
    is_endless: bool = False
    upload: Path | None = None
    content: bytes | None = None


@dataclass(frozen=True)
class Pause:
    """Wait before the next call of an operation."""

    seconds: float


class Run(Protocol):
    """Send a call and parse its response."""

    def __call__(self, call: Call[T]) -> T: ...


class AsyncRun(Protocol):
    """`Run` for asyncio."""

    async def __call__(self, call: Call[T]) -> T: ...


class Follow(Protocol):
    """Run an operation of several calls; returns its result."""

    def __call__(self, steps: "Steps[T]") -> T: ...


class AsyncFollow(Protocol):
    """`Follow` for asyncio."""

    async def __call__(self, steps: "Steps[T]") -> T: ...


# An operation of several calls: yields calls and pauses, is sent the parsed responses, returns its result.
Steps = Generator[Call[Any] | Pause, Any, T]


def submit(
    fields: Mapping[str, Any], strategy: Strategy = "queue", idempotency_key: str | None = None, strict: bool = True
) -> Call[Submitted]:
    """POST /train."""
    return Call(
        "POST",
        "/train",
        read_model(Submitted),
        params=_submission_query(strategy, strict),
        body=dict(fields),
        headers=_idempotency(idempotency_key),
        is_repeatable=True,
    )


def sft(
    config: Config | None,
    idempotency_key: str | None = None,
    strategy: Strategy = "queue",
    strict: bool = True,
    **options: Unpack[SftOptions],
) -> Call[Submitted]:
    """POST /api/sft/train."""
    return Call(
        "POST",
        "/api/sft/train",
        read_model(Submitted),
        params=_submission_query(strategy, strict),
        body=_sft_body(config, options),
        headers=_idempotency(idempotency_key),
        is_repeatable=True,
    )


def plan(fields: Mapping[str, Any], device: str | None = None) -> Call[Plan]:
    """POST /train/plan. The service limits its time itself; that is longer than the read timeout."""
    return _plan("/train/plan", dict(fields), device)


def plan_sft(config: Config | None, device: str | None = None, **options: Unpack[SftOptions]) -> Call[Plan]:
    """POST /api/sft/plan."""
    return _plan("/api/sft/plan", _sft_body(config, options), device)


def _plan(path: str, body: dict[str, Any], device: str | None) -> Call[Plan]:
    params = {} if device is None else {"device": device}
    return Call("POST", path, read_model(Plan), params=params, body=body, is_repeatable=True, is_endless=True)


def _sft_body(config: Config | None, options: SftOptions) -> dict[str, Any]:
    """Build the body. When a model overrides a saved configuration, only the fields that were set are sent."""
    body: dict[str, Any] = {}
    if config is not None:
        body["config"] = plain(config, exclude_unset=options.get("config_id") is not None)
    given = {name: value for name, value in options.items() if value is not None}
    if "webhook_events" in given:
        given["webhook_events"] = [*(options["webhook_events"] or ())]
    return body | given


def job(job_id: str) -> Call[TrainJob]:
    """GET /train/{id}."""
    return get(_job_path(job_id), read_model(TrainJob))


def cancel(job_id: str) -> Call[Cancelled]:
    """DELETE /train/{id}."""
    return Call("DELETE", _job_path(job_id), read_model(Cancelled))


def queue() -> Call[Queue]:
    """GET /queue."""
    return get("/queue", read_model(Queue))


def metrics(job_id: str) -> Call[Metrics]:
    """GET /train/{id}/metrics."""
    return get(_job_path(job_id, "/metrics"), read_model(Metrics))


def checkpoints(job_id: str) -> Call[list[Checkpoint]]:
    """GET /train/{id}/checkpoints."""
    return get(_job_path(job_id, "/checkpoints"), read_models(Checkpoint, "checkpoints"))


def deliveries(job_id: str) -> Call[list[Delivery]]:
    """GET /train/{id}/deliveries."""
    return get(_job_path(job_id, "/deliveries"), read_models(Delivery, "deliveries"))


def resend(job_id: str, delivery_id: str) -> Call[Delivery]:
    """POST /train/{id}/deliveries/{id}/resend."""
    path = _job_path(job_id, f"/deliveries/{segment(delivery_id)}/resend")
    return Call("POST", path, read_model(Delivery))


def jobs_page(filters: JobFilters, limit: int, cursor: str | None) -> Call[tuple[list[TrainJob], str | None]]:
    """GET /train: one page, and the cursor of the next or None."""
    read_jobs = read_models(TrainJob)
    params: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    params |= {"limit": limit} | ({"cursor": cursor} if cursor else {})
    for name in ("created_after", "created_before"):
        if isinstance(params.get(name), datetime):
            params[name] = params[name].isoformat()
    if pairs := params.get("metadata"):
        params["metadata"] = [f"{key}:{value}" for key, value in pairs.items()]
    return get("/train", lambda response: (read_jobs(response), response.headers.get(CURSOR_HEADER)), params)


def jobs(limit: int | None, filters: JobFilters) -> Steps[list[TrainJob]]:
    """List jobs, newest first, page by page, up to `limit`. Raises UnexpectedResponse if the pages never end."""
    found: list[TrainJob] = []
    cursor = None
    seen_cursors: set[str] = set()
    while True:
        wanted = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found))
        page, cursor = yield jobs_page(filters, wanted, cursor)
        found += page
        if cursor is None or (limit is not None and len(found) >= limit):
            return found
        if cursor in seen_cursors or (not page and len(seen_cursors) >= MAX_EMPTY_PAGES):
            raise UnexpectedResponse("the list has no end; is this a Tuneyard service?")
        seen_cursors.add(cursor)


def logs_request(job_id: str, follow: bool, tail: int | None) -> Call[Any]:
    """GET /train/{id}/logs, as JSON lines."""
    params: dict[str, Any] = {"format": "json"} | ({"follow": "true"} if follow else {})
    params |= {"tail": tail} if tail is not None else {}
    path = _job_path(job_id, "/logs")
    return Call("GET", path, lambda response: response, params, is_repeatable=True, is_endless=follow)


def read_log_line(line: str) -> LogLine:
    """Parse a JSON line of a log. Raises UnexpectedResponse."""
    return validate(LogLine.model_validate, lambda: json.loads(line))


def events_request(job_id: str, last_event_id: str | None) -> Call[Any]:
    """GET /train/{id}/events: those after `last_event_id`."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    return Call("GET", _job_path(job_id, "/events"), lambda response: response, headers=headers, is_repeatable=True)


def adapter_request(job_id: str, part: str = "adapter") -> Call[Any]:
    """GET /train/{id}/adapter."""
    params = {} if part == "adapter" else {"part": part}
    return get(_job_path(job_id, "/adapter"), lambda response: response, params)


def get(path: str, read: Callable[[httpx.Response], T], params: Mapping[str, Any] | None = None) -> Call[T]:
    """A GET request."""
    return Call("GET", path, read, params=params or {}, is_repeatable=True)


def segment(name: str, what: str = "an id") -> str:
    """An id as a path segment. Raises InvalidRequest for an id that would change the path, a quoted slash too."""
    try:
        if name not in ("", ".", "..") and "/" not in name:
            return quote(name, safe="")
    except UnicodeEncodeError:
        pass
    raise InvalidRequest(f"{name!r:.80} is not {what}", code="invalid_id")


def _job_path(job_id: str, suffix: str = "") -> str:
    return f"/train/{segment(job_id)}{suffix}"


def plain(config: Config, exclude_unset: bool = False) -> dict[str, Any]:
    """A configuration as JSON."""
    if isinstance(config, BaseModel):
        return config.model_dump(mode="json", exclude_unset=exclude_unset)
    return dict(config)


def _idempotency(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key or str(uuid.uuid4())}


def _submission_query(strategy: Strategy, strict: bool) -> dict[str, str]:
    waiting = {} if strategy == "queue" else {"strategy": strategy}
    return waiting | ({"strict": "true"} if strict else {})
