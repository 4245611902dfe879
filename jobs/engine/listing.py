"""Lists jobs page by page, newest first, with filters."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from jobs.engine.job_queue import JobQueue
from jobs.engine.runs import PrefectRuns, state_filter
from jobs.errors import InvalidCursor
from jobs.spec import made_by_tag, metadata_tag, owner_tag
from jobs.status import JobStatus, state_types
from jobs.storage.id_prefixes import find_offset, id_range
from jobs.vocabulary import ONGOING_NAMES, PAGE_SIZE, StateName

_CREATED = frozenset({JobStatus.CREATED})
_QUEUED = frozenset({JobStatus.QUEUED})
_WAITING = _CREATED | _QUEUED
_ACTIVE = frozenset({JobStatus.STARTING, JobStatus.RUNNING})

_ANY = filters.FlowRunFilter()
SHIFT = 20  # number of jobs that may be deleted during a search by id


@dataclass(frozen=True)
class JobFilters:
    """Filters of a list of jobs; None does not filter. Times are when a job was first queued, with time zone."""

    statuses: frozenset[JobStatus] | None = None
    model: str | None = None
    adapter: str | None = None
    dataset: str | None = None  # with or without a revision
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: Sequence[tuple[str, str]] = ()  # all of these pairs
    made_by: str | None = None  # the flow that submitted it
    owner: UUID | None = None
    id_prefix: str | None = None  # of the jobs whose ids begin so, the 200 with the greatest ids


class Cursor(NamedTuple):
    """The end of a page: the time of its last run, and the runs of the same time that were shown."""

    time: datetime
    shown: list[UUID]

    def encode(self) -> str:
        """Encode as text for clients."""
        text = json.dumps([self.time.isoformat(), [str(run_id) for run_id in self.shown]], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        """Read what `encode` wrote. Raises InvalidCursor."""
        try:
            time, shown = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            moment = datetime.fromisoformat(time)
            if moment.tzinfo is None:
                raise ValueError("names no zone")
            # In UTC: a time near year 1 or 9999 may be out of the database's range.
            return cls(moment.astimezone(UTC), [UUID(run_id) for run_id in shown])
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidCursor("cursor is not one of this service; leave it out to start at the first page") from error


class RunPage(NamedTuple):
    """One page of runs and the cursor of the next one; None after the last page."""

    runs: list[FlowRun]
    cursor: Cursor | None


class Listing:
    """Reads pages of runs."""

    def __init__(self, runs: PrefectRuns, line: JobQueue) -> None:
        self._runs = runs
        self._line = line

    def page(self, wanted: JobFilters, cursor: Cursor | None, limit: int | None) -> RunPage:
        """The next `limit` runs (all if None) after the cursor."""
        only = None if wanted.id_prefix is None else self._find_ids(wanted.id_prefix)
        if only == []:
            return RunPage([], None)
        starting = [run.id for run in self._line.starting()] if wanted.statuses in (_QUEUED, _WAITING, _ACTIVE) else []
        if wanted.statuses == _ACTIVE:
            return self._active_page(wanted, starting, cursor, limit, only)
        found: list[FlowRun] = []
        start = cursor
        while True:
            size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit + 1 - len(found))  # 1: is there a next page?
            page = self._runs.page(_to_run_filter(wanted, cursor, starting, only), limit=size)
            found += page
            cursor = _cursor_behind(page, cursor)
            if len(page) < size or (limit is not None and len(found) > limit):
                return _cut(found, limit, start)

    def _active_page(
        self,
        wanted: JobFilters,
        starting: list[UUID],
        cursor: Cursor | None,
        limit: int | None,
        only: list[UUID] | None,
    ) -> RunPage:
        """Running and starting jobs: at most as many as there are slots, so all are read."""
        found = self._runs.page(_to_run_filter(wanted, cursor, [], only))
        starting = starting if only is None else [run_id for run_id in starting if run_id in only]
        if starting:
            plain = JobFilters(**{**vars(wanted), "statuses": None})
            found += self._runs.page(_to_run_filter(plain, cursor, [], only=starting))
        newest_first = sorted({run.id: run for run in found}.values(), key=_time_of, reverse=True)
        return _cut(newest_first, limit, cursor)

    def _find_ids(self, prefix: str) -> list[UUID]:
        """Ids with this prefix, by bisection of the list in id order; Prefect can filter by whole ids only."""
        least, greatest = id_range(prefix)
        ids = self._runs.read_ids()

        def run_at(offset: int) -> UUID | None:
            page = self._runs.page(_ANY, FlowRunSort.ID_DESC, limit=1, offset=offset)
            return next((ids.run_of(run.id) for run in page), None)

        offset = find_offset(self._runs.count(_ANY), run_at, greatest)
        page = self._runs.page(_ANY, FlowRunSort.ID_DESC, offset=max(0, offset - SHIFT))  # some may have been deleted
        found = {run.id for run in page} | ids.jobs  # re-created runs are not in the order of their jobs' ids
        return sorted((job_id for job_id in found if least <= job_id <= greatest), reverse=True)


def _to_run_filter(
    wanted: JobFilters, cursor: Cursor | None, starting: list[UUID], only: list[UUID] | None = None
) -> filters.FlowRunFilter:
    tags = [f"model:{wanted.model}"] if wanted.model is not None else []
    tags += [f"adapter:{wanted.adapter}"] if wanted.adapter is not None else []
    tags += [f"dataset:{wanted.dataset}"] if wanted.dataset is not None else []
    tags += [metadata_tag(key, value) for key, value in wanted.metadata]
    tags += [made_by_tag(wanted.made_by)] if wanted.made_by is not None else []
    tags += [owner_tag(wanted.owner)] if wanted.owner is not None else []
    before = min((time for time in (cursor and cursor.time, wanted.created_before) if time), default=None)
    excluded = (cursor.shown if cursor else []) + starting
    return filters.FlowRunFilter.model_validate(
        {
            "state": _to_state_filter(wanted.statuses) if wanted.statuses is not None else None,
            "tags": {"all_": tags} if tags else None,
            "expected_start_time": {"after_": wanted.created_after, "before_": before},
            "id": {"any_": only, "not_any_": excluded or None} if only or excluded else None,
        }
    )


def _to_state_filter(statuses: frozenset[JobStatus]) -> filters.FlowRunFilterState:
    if statuses == _WAITING:
        return state_filter(state_types(JobStatus.QUEUED), not_names=ONGOING_NAMES)
    if statuses == _QUEUED:
        return state_filter(state_types(JobStatus.QUEUED), not_names=[*ONGOING_NAMES, StateName.CREATED])
    if statuses == _CREATED:  # only a paused run has this name
        return state_filter(names=[StateName.CREATED])
    if statuses == _ACTIVE:
        return state_filter(state_types(*statuses), names=ONGOING_NAMES)
    return state_filter(state_types(*statuses))


def _time_of(run: FlowRun) -> datetime:
    assert run.expected_start_time is not None  # noqa: S101 - set with a run's first state
    return run.expected_start_time


def _cursor_behind(page: list[FlowRun], before: Cursor | None) -> Cursor | None:
    if not page:
        return before
    last = _time_of(page[-1])
    earlier = before.shown if before and before.time == last else []
    return Cursor(last, earlier + [run.id for run in page if _time_of(run) == last])


def _cut(found: list[FlowRun], limit: int | None, start: Cursor | None) -> RunPage:
    if limit is None or len(found) <= limit:
        return RunPage(found, None)
    return RunPage(found[:limit], _cursor_behind(found[:limit], start))
