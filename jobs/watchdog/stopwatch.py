"""`Stopwatch`: measures for how long observed values have not changed."""

import time
from collections.abc import Callable, Mapping

Clock = Callable[[], float]  # seconds
Key = tuple[str, str]  # run id, what is observed
Reading = tuple[str, float]  # the value, and for how many seconds it has been the same


class Stopwatch:
    """Seconds since values last changed, as observed by regular calls. Values are compared as text."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Key, tuple[str, float]] = {}
        self._changed: set[Key] = set()

    def seconds(self, run_id: str, what: str, value: object) -> float:
        """Observe a value; returns for how long it has been the same."""
        now, key, shown = self._clock(), (run_id, what), str(value)
        known = self._since.get(key)
        if known is None or known[0] != shown:
            self._since[key] = known = shown, now
            self._changed.add(key)
        return now - known[1]

    def forget(self, run_id: str) -> None:
        """Forget this run."""
        self._drop({key for key in self._since if key[0] == run_id})

    def keep(self, run_ids: set[str]) -> None:
        """Forget all other runs."""
        self._drop({key for key in self._since if key[0] not in run_ids})

    def _drop(self, keys: set[Key]) -> None:
        for key in keys:
            del self._since[key]
        self._changed |= keys

    def restore(self, readings: Mapping[Key, Reading]) -> None:
        """Replace everything by what another process has measured."""
        now = self._clock()
        self._since = {key: (value, now - seconds) for key, (value, seconds) in readings.items()}
        self._changed = set()

    def take_changes(self, has_all: bool = False) -> dict[Key, Reading | None]:
        """What has changed since the last call, or all; None for what was forgotten."""
        now, keys = self._clock(), self._changed | (self._since.keys() if has_all else set())
        self._changed = set()
        found = {key: self._since.get(key) for key in keys}
        return {key: known and (known[0], now - known[1]) for key, known in found.items()}
