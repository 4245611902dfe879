"""When faults come: spread over the jobs of a run, each once there is something to hit."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tests.chaos.clients import Clients

T = TypeVar("T")

AHEAD = 2  # so many faults may come before the jobs between which they lie have ended
POLL_SECONDS = 0.1


class NoTarget(Exception):
    """There was nothing to do the fault to."""


def pace(
    kinds: Sequence[str],
    jobs: int,
    clients: Clients,
    rng: random.Random,
    spread_seconds: tuple[float, float],
    deadline: float,
) -> Iterator[str]:
    """Yield each kind of fault once it is due: they are spread over the ends of so many jobs.

    Args:
        spread_seconds: least and most time from when a fault is due until it comes.
    """
    for number, kind in enumerate(kinds):
        due = number * jobs / len(kinds) - AHEAD
        wait_until(lambda due=due: clients.count_ended() >= due, deadline)  # type: ignore[misc]
        time.sleep(min(rng.uniform(*spread_seconds), max(0.0, deadline - time.monotonic())))
        yield kind


def wait_for_target(find: Callable[[], T | None], seconds: float, deadline: float) -> T:
    """What `find` finds, once it finds something. Raises NoTarget after `seconds` or at the deadline."""
    until = min(deadline, time.monotonic() + seconds)
    while time.monotonic() < until:
        if (found := find()) is not None:
            return found
        time.sleep(POLL_SECONDS)
    raise NoTarget(f"nothing to hit within {seconds:.0f} s")


def wait_until(condition: Callable[[], bool], deadline: float) -> None:
    """Return once the condition holds, or at the deadline."""
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
