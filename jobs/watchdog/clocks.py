"""`Clocks`: stores the measurements of the watchdog's tasks in the database, so that a successor can use them."""

import time
from collections import defaultdict
from datetime import timedelta

from sqlalchemy import Engine, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from jobs.storage.tables import WatchdogClock
from jobs.watchdog.stopwatch import Key, Reading, Stopwatch

# Time without an active watchdog that counts as measured: a takeover. In a longer one, heartbeats may not have been
# written either, as when the machine was asleep or the database was down.
COUNTED_GAP_SECONDS = 15.0
SAVE_SECONDS = 10.0  # between writes of everything, in case the database's clock was set
LONGEST_SECONDS = 1e9  # that is taken from a clock


class Clocks:
    """The stopwatches of all tasks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopwatches: dict[str, Stopwatch] = {}
        self._saved_at = time.monotonic()

    def stopwatch(self, task: str) -> Stopwatch:
        """A stopwatch that is stored, under the task's name."""
        return self._stopwatches.setdefault(task, Stopwatch())

    def load(self, gap_seconds: float) -> None:
        """Continue from the stored measurements. Raises SQLAlchemyError.

        Args:
            gap_seconds: since the last watchdog has finished a task; infinite if nobody could measure since.
        """
        found: dict[str, dict[Key, Reading]] = defaultdict(dict)
        uncounted = timedelta(seconds=min(max(0.0, gap_seconds - COUNTED_GAP_SECONDS), LONGEST_SECONDS))
        age = func.extract("epoch", func.clock_timestamp() - WatchdogClock.since)
        columns = (WatchdogClock.task, WatchdogClock.run_id, WatchdogClock.what, WatchdogClock.value, age)
        with self._engine.begin() as connection:
            if uncounted:
                since = func.least(func.clock_timestamp(), WatchdogClock.since + uncounted)
                connection.execute(update(WatchdogClock).values(since=since))
            for task, run_id, what, value, seconds in connection.execute(select(*columns)):
                found[task][run_id, what] = value, max(0.0, float(seconds))
        for task, stopwatch in self._stopwatches.items():
            stopwatch.restore(found[task])

    def save(self) -> None:
        """Write the values that have changed, and from time to time all of them. Raises SQLAlchemyError."""
        has_all = time.monotonic() - self._saved_at > SAVE_SECONDS
        if has_all:
            self._saved_at = time.monotonic()
        kept, dropped = [], []
        for task, stopwatch in self._stopwatches.items():
            for (run_id, what), reading in stopwatch.take_changes(has_all).items():
                key = {"task": task, "run_id": run_id, "what": what}
                if reading is None:
                    dropped.append({f"b_{name}": value for name, value in key.items()})
                else:
                    kept.append((key, reading))
        if not kept and not dropped:
            return
        with self._engine.begin() as connection:
            if dropped:
                keys = (WatchdogClock.task, WatchdogClock.run_id, WatchdogClock.what)
                connection.execute(
                    delete(WatchdogClock).where(*(column == bindparam(f"b_{column.key}") for column in keys)), dropped
                )
            for key, (value, seconds) in kept:
                now = {"value": value, "since": func.clock_timestamp() - timedelta(seconds=seconds)}
                row = insert(WatchdogClock).values(**key, **now)
                connection.execute(row.on_conflict_do_update(index_elements=["task", "run_id", "what"], set_=now))
