"""`FairSlots`: limit concurrent work so that no client can block the others."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_SECONDS = 0.2


class FairSlots:
    """`at_once` slots for all clients, and `reserved` more for clients that hold none. Thread-safe.

    A client holds at most `at_once` slots, so that slow work leaves slots for others. Waiting callers are served by
    the number of slots their client holds, fewest first, then by waiting time.
    """

    def __init__(self, at_once: int, reserved: int = 0) -> None:
        self._at_once = at_once
        self._reserved = reserved
        self._changed = threading.Condition()
        self._working: Counter[str] = Counter()
        self._waiting: list[tuple[object, str]] = []

    @contextmanager
    def taken(self, client: str, check: Callable[[], None]) -> Iterator[None]:
        """Hold a slot for this client. While it waits, `check` is called several times a second and may raise."""
        waiting = (object(), client)
        with self._changed:
            self._waiting.append(waiting)
            try:
                while self._next() is not waiting:
                    self._changed.wait(POLL_SECONDS)
                    check()
                self._working[client] += 1
            finally:
                self._waiting.remove(waiting)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._working[client] -= 1
                if not self._working[client]:
                    del self._working[client]
                self._changed.notify_all()

    def _next(self) -> tuple[object, str] | None:
        """The caller that gets a slot next; None if no slot is free."""
        total = self._working.total()
        allowed = [waiting for waiting in self._waiting if total < self._slots_for(waiting[1])]
        return min(allowed, key=lambda waiting: self._working[waiting[1]], default=None)  # the first of equal ones

    def _slots_for(self, client: str) -> int:
        return self._at_once + (0 if self._working[client] else self._reserved)
