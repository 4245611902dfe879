"""Why jobs wait though a slot is free: what somebody has paused, limited or deleted in Prefect."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Blockers:
    """Sentences on what keeps jobs from starting: all of them, or those of a work queue by its name."""

    pool: str | None = None
    queues: Mapping[str, str] = field(default_factory=dict)

    def of(self, queue: str | None) -> str | None:
        """What keeps the jobs of this work queue waiting."""
        return self.pool or self.queues.get(queue or "")

    def summary(self) -> str | None:
        """All of it in one line."""
        return self.pool or "; ".join(self.queues.values()) or None


def find_blocker(what: str, is_paused: bool, limit: int | None) -> str | None:
    """What is wrong with a work pool or queue, called `what`, that is paused or has this concurrency limit."""
    if is_paused:
        return f"{what} is paused in Prefect; resume it there"
    return f"{what} has a concurrency limit of 0 in Prefect; raise it there" if limit == 0 else None


def describe_missing(work_pool: str) -> str:
    """What is wrong when there is no such pool."""
    return f"the work pool {work_pool} is gone from Prefect; run `tuneyard up`"
