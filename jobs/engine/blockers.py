"""Explains why jobs wait behind no other job: something is paused, limited or deleted in Prefect, or no worker runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Blockers:
    """Reasons that keep jobs from starting: for all jobs, and by work queue."""

    pool: str | None = None
    queues: Mapping[str, str] = field(default_factory=dict)

    def of(self, queue: str | None) -> str | None:
        """Why the jobs of this work queue wait; None if nothing blocks them."""
        return self.pool or self.queues.get(queue or "")

    def summary(self) -> str | None:
        """All reasons in one line."""
        return self.pool or "; ".join(self.queues.values()) or None


def find_blocker(what: str, is_paused: bool, limit: int | None) -> str | None:
    """Explain that `what`, a work pool or queue, is paused or has a concurrency limit of 0; None if neither."""
    if is_paused:
        return f"{what} is paused in Prefect; resume it there"
    return f"{what} has a concurrency limit of 0 in Prefect; raise it there" if limit == 0 else None


def describe_missing(work_pool: str) -> str:
    """Explain that the work pool does not exist."""
    return f"the work pool {work_pool} is gone from Prefect; run `tuneyard up`"


def describe_no_worker(work_pool: str) -> str:
    """Explain that no worker of the pool has sent a heartbeat lately."""
    return (
        f"no worker of the work pool {work_pool} is online; `tuneyard up` starts those of the local stack, `tuneyard "
        "deploy` shows the command for your own hosts"
    )
