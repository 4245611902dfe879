"""`JobQueue`: the order in which Prefect's workers start waiting jobs: by work queue (priority), then by time."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType

from jobs.engine.capacity import Room
from jobs.engine.runs import PrefectRuns, WaitingRun, due_between, state_filter
from jobs.spec import owner_tag
from jobs.storage.run_ids import RunIds
from jobs.vocabulary import FIRST_QUEUE, FIRST_RANK, LAST_QUEUE, ONGOING_NAMES, PAGE_SIZE, RunState
from tuneyard_wire.fields import Priority

_TAKEN = -1_000_000  # position of a run that a worker has taken
_UNKNOWN_RANK = 1_000_000  # a queue that was just made, which Prefect ranks last

_OCCUPYING = filters.FlowRunFilter(
    state=state_filter([RunState.PENDING, RunState.RUNNING, RunState.CANCELLING, RunState.CRASHED], names=ONGOING_NAMES)
)


class Queue(NamedTuple):
    """Whether a job is running, and the ids of the waiting jobs in order.

    `waiting_for` says what else keeps them waiting, such as a paused work pool; `others` is the number of waiting jobs
    of other owners, which are not in `waiting`.
    """

    is_training_running: bool
    waiting: list[UUID]
    waiting_for: str | None = None
    others: int = 0


def is_in_line(run: FlowRun) -> bool:
    """Whether the run waits for a slot now: not if it is scheduled for later, or resumes in a slot that it has."""
    if run.state is None or run.state.type is not StateType.SCHEDULED or run.state.name in ONGOING_NAMES:
        return False
    return run.next_scheduled_start_time is None or run.next_scheduled_start_time <= datetime.now(UTC)


def priority_of(run: FlowRun) -> Priority:
    """The priority of a run, by its work queue."""
    return "high" if run.work_queue_name == FIRST_QUEUE else "low" if run.work_queue_name == LAST_QUEUE else "normal"


class JobQueue:
    """The queue of one work pool, read from Prefect for each call."""

    def __init__(self, runs: PrefectRuns) -> None:
        self._runs = runs

    def queue_name(self, priority: Priority) -> str | None:
        """The work queue of a priority, created if needed; None for the deployment's own."""
        if priority == "normal":
            return None
        self._runs.pool.ensure_queue(priority, FIRST_RANK if priority == FIRST_QUEUE else None)
        return priority

    def is_busy(self) -> bool:
        """Whether any job runs or waits for a slot."""
        return self._count_occupied() > 0 or self._count_waiting() > 0

    def places(self, runs: Iterable[FlowRun], ids: RunIds | None = None) -> dict[UUID, int]:
        """Queue positions of these runs, if they wait: 1 is behind the free slots, 0 or less has a free slot."""
        waiting = sorted(filter(is_in_line, runs), key=_time)
        if not waiting:
            return {}
        pool, room = self._runs.pool.read(), self._read_room(ids)
        places: dict[UUID, int] = {}
        for name in {run.work_queue_name or "" for run in waiting}:
            mine = [run for run in waiting if (run.work_queue_name or "") == name]
            rank = pool.ranks.get(name, _UNKNOWN_RANK)
            is_blocked = pool.blockers.of(name) is not None
            # A job that can't start does not hold up one that can; if neither can, the order stays.
            ahead = [
                other
                for other, its_rank in pool.ranks.items()
                if its_rank < rank and (is_blocked or not pool.blockers.of(other))
            ]
            waiting_ahead, starting_ahead = self._count_ahead(ahead, room)
            can_start = 0 if is_blocked else min(room.of(name), room.free - starting_ahead)
            for run_id, place in self._places_in(name, mine).items():
                queued_ahead = 0 if place <= can_start else waiting_ahead - starting_ahead
                places[run_id] = queued_ahead + place - can_start
        return places

    def starting(self) -> list[WaitingRun]:
        """The runs that workers take next: the first of the queue, as many as slots are free."""
        room = self._read_room()
        return self._first(room) if room.free else []

    def read(self, owner: UUID | None = None) -> Queue:
        """Read the whole queue; jobs of others than this owner are only counted."""
        ids = self._runs.read_ids()
        pool, occupied = self._runs.pool.read(), self._count_occupied(ids)
        line = self._sorted(self._read_all(ids=ids))
        room = pool.room(lambda queues: self._count_occupied(ids, queues) if queues else occupied)
        starting = {run.id for run in _fill(line, room)}
        waiting = [run.id for run in line if run.id not in starting]
        shown = waiting
        if owner is not None:
            mine = {run.id for run in self._read_all(ids=ids, owner=owner)}
            shown = [job_id for job_id in waiting if job_id in mine]
        others = len(waiting) - len(shown)
        return Queue(occupied > 0 or bool(starting), shown, pool.blockers.summary(), others)

    def blocker_of(self, run: FlowRun) -> str | None:
        """What keeps a waiting run from starting, besides the jobs ahead."""
        return self._runs.pool.read().blockers.of(run.work_queue_name) if is_in_line(run) else None

    def _places_in(self, queue: str, runs: list[FlowRun]) -> dict[UUID, int]:
        """Positions from 1 within one work queue, of runs sorted by time: counted, and read only where gaps are."""
        last = self._count_waiting([queue], before=_time(runs[-1]))
        if last == 0 and len(runs) == 1 and not is_in_line(self._runs.get(runs[0].id)):
            return {runs[0].id: _TAKEN}  # taken meanwhile; it must not be counted against itself
        if len(runs) == 1:
            return {runs[0].id: max(last, 1)}
        first = self._count_waiting([queue], before=_time(runs[0]))
        if last - first + 1 == len(runs):
            return {run.id: first + index for index, run in enumerate(runs)}
        between = self._sorted(self._read_all([queue], _time(runs[0]), _time(runs[-1])))
        wanted = {run.id for run in runs}
        taken = dict.fromkeys(wanted, _TAKEN)  # but for those that still wait
        return taken | {run.id: first + index for index, run in enumerate(between) if run.id in wanted}

    def _count_ahead(self, queues: list[str], room: Room) -> tuple[int, int]:
        """How many jobs wait in these work queues, and how many of them can start now."""
        plain, narrow = [name for name in queues if name not in room.queues], [*room.queues.keys() & {*queues}]
        waiting = startable = self._count_waiting(plain) if plain else 0
        for name in narrow:
            count = self._count_waiting([name])
            waiting, startable = waiting + count, startable + min(count, room.of(name))
        return waiting, min(startable, room.free)

    def _first(self, room: Room) -> list[WaitingRun]:
        """The first runs of the queue: the first of every work queue, merged."""
        found: list[WaitingRun] = []
        ids = self._runs.read_ids()
        for name in self._runs.pool.read().ranks:
            if count := room.of(name):
                found += self._runs.first_waiting(_waiting(None, datetime.now(UTC)), count, [name], ids)
        return _fill(self._sorted(found), room)

    def _sorted(self, runs: Iterable[WaitingRun]) -> list[WaitingRun]:
        ranks = self._runs.pool.read().ranks
        return sorted(
            runs, key=lambda run: (ranks.get(run.work_queue_name or "", _UNKNOWN_RANK), _time(run), str(run.id))
        )

    def _read_all(
        self,
        queues: list[str] | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        ids: RunIds | None = None,
        owner: UUID | None = None,
    ) -> Iterator[WaitingRun]:
        """Every waiting run of these queues, times and owner; a run that moves meanwhile appears once or not at all."""
        before = before or datetime.now(UTC)
        seen: set[UUID] = set()
        while True:
            wanted = _waiting(after, before, [*seen], owner)
            page = self._runs.first_waiting(wanted, queues=queues, ids=ids)
            yield from page
            if len(page) < PAGE_SIZE:
                return
            after = _time(page[-1])
            seen = {run.id for run in page if _time(run) == after} | (seen if _time(page[0]) == after else set())

    def _read_room(self, ids: RunIds | None = None) -> Room:
        return self._runs.pool.read().room(lambda queues: self._count_occupied(ids, queues))

    def _count_occupied(self, ids: RunIds | None = None, queues: list[str] | None = None) -> int:
        """Slots in use, by jobs of these work queues or of all.

        An ended job's slot counts as free, though Prefect learns of the end a moment later.
        """
        just_ended = (ids or self._runs.read_ids()).just_ended
        others = filters.FlowRunFilterId(not_any_=just_ended) if just_ended else None
        return self._runs.count(_OCCUPYING.model_copy(update={"id": others}), queues)

    def _count_waiting(self, queues: list[str] | None = None, before: datetime | None = None) -> int:
        return self._runs.count(_waiting(None, before or datetime.now(UTC)), queues)


def _fill(line: Iterable[WaitingRun], room: Room) -> list[WaitingRun]:
    """The runs of a sorted queue that get the free slots."""
    free, left = room.free, dict(room.queues)
    taken: list[WaitingRun] = []
    for run in line:
        name = run.work_queue_name or ""
        if len(taken) == free:
            break
        if left.get(name, free) > 0:
            taken.append(run)
            left[name] = left.get(name, free) - 1
    return taken


def _time(run: FlowRun | WaitingRun) -> datetime:
    return run.next_scheduled_start_time or datetime.now(UTC) + timedelta(days=1)


def _waiting(
    after: datetime | None, before: datetime, excluded: list[UUID] | None = None, owner: UUID | None = None
) -> filters.FlowRunFilter:
    return filters.FlowRunFilter(
        state=state_filter([RunState.SCHEDULED], not_names=ONGOING_NAMES),
        next_scheduled_start_time=due_between(after, before),
        id=filters.FlowRunFilterId(not_any_=excluded) if excluded else None,
        tags=filters.FlowRunFilterTags(all_=[owner_tag(owner)]) if owner else None,
    )
