"""How many jobs a work pool can run at once: one rule, from its type, its limits and the workers that are online.

Prefect does not report how many runs a worker takes (`--limit`): it stores only the worker's name and last heartbeat.
The documented commands start workers that run jobs on their own host with `--limit 1`, so such a worker counts as one
slot. A worker of another type (Kubernetes) starts jobs elsewhere, as many as the pool's limit allows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jobs.engine.blockers import Blockers
from jobs.vocabulary import PAGE_SIZE

ON_OWN_HOST = ("process", "docker")  # types of pools whose workers run jobs on their own hosts
NO_LIMIT = PAGE_SIZE  # free slots of a pool without a limit: as many runs as its worker takes at once


@dataclass(frozen=True)
class Room:
    """Free slots: of the whole pool, and of the work queues that have fewer than that."""

    free: int
    queues: Mapping[str, int] = field(default_factory=dict)

    def of(self, queue: str | None) -> int:
        """Number of jobs of this work queue that can start if no other queue's do."""
        return min(self.free, self.queues.get(queue or "", self.free))


@dataclass(frozen=True)
class Pool:
    """A work pool: how many jobs can run at once, its work queues' ranks (lowest first) and what keeps jobs waiting.

    Attributes:
        slots: None for no limit.
        queue_limits: Maximum number of jobs at once, of the work queues that have a limit.
    """

    slots: int | None
    ranks: Mapping[str, int]
    blockers: Blockers
    queue_limits: Mapping[str, int] = field(default_factory=dict)

    def room(self, count_occupied: Callable[[list[str] | None], int]) -> Room:
        """The free slots.

        Args:
            count_occupied: counts the slots in use, by jobs of these work queues or of all.
        """
        if self.slots == 0:
            return Room(0)
        free = NO_LIMIT if self.slots is None else max(0, self.slots - count_occupied(None))
        queues = {name: 0 for name in self.ranks if self.blockers.of(name)}
        if free:
            open_queues = (name for name in self.queue_limits if name not in queues)
            queues |= {name: max(0, self.queue_limits[name] - count_occupied([name])) for name in open_queues}
        return Room(free, queues)


def count_slots(pool_type: str, limit: int | None, online_workers: int) -> int | None:
    """Maximum number of jobs that a work pool runs at once; None for no limit.

    Args:
        pool_type: Prefect's type of the pool, such as `process` or `kubernetes`.
        limit: The pool's concurrency limit.
        online_workers: Workers with a recent heartbeat (three intervals of 30 s by Prefect's default, so that a
            worker that restarts stays online).
    """
    if pool_type in ON_OWN_HOST:
        return online_workers if limit is None else min(limit, online_workers)
    return limit if online_workers or not needs_worker(pool_type) else 0


def needs_worker(pool_type: str) -> bool:
    """Whether jobs of a pool of this type are started by a worker, not by Prefect's server itself."""
    return not pool_type.endswith((":push", ":managed"))
