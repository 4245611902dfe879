"""`Stopwatch`: measures for how long observed values have not changed."""

import time
from collections.abc import Callable

Clock = Callable[[], float]  # seconds


class Stopwatch:
    """Seconds since values last changed, as observed by regular calls."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[tuple[str, str], tuple[object, float]] = {}

    def seconds(self, run_id: str, what: str, value: object) -> float:
        """Observe a value; returns for how long it has been the same."""
        now = self._clock()
        known, since = self._since.get((run_id, what), (value, now))
        if known != value:
            since = now
        self._since[run_id, what] = value, since
        return now - since

    def forget(self, run_id: str) -> None:
        """Forget this run."""
        self._since = {key: seen for key, seen in self._since.items() if key[0] != run_id}

    def keep(self, run_ids: set[str]) -> None:
        """Forget all other runs."""
        self._since = {key: seen for key, seen in self._since.items() if key[0] in run_ids}
