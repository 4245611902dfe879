"""Whose turn it is where only a few may work at the same time: no client keeps the others from theirs."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_SECONDS = 0.2


class Turns:
    """`at_once` turns for whoever comes, and `apart` more for clients that have none. Thread-safe.

    A client whose work takes long holds `at_once` turns at most, so that others find one of their own. Of those who
    wait the one whose client has the fewest turns comes first, then the one who has waited longest.
    """

    def __init__(self, at_once: int, apart: int = 0) -> None:
        self._at_once = at_once
        self._apart = apart
        self._changed = threading.Condition()
        self._working: Counter[str] = Counter()
        self._waiting: list[tuple[object, str]] = []

    @contextmanager
    def taken(self, client: str, check: Callable[[], None]) -> Iterator[None]:
        """A turn of this client's. While it waits, `check` is called several times a second, and may raise."""
        place = (object(), client)
        with self._changed:
            self._waiting.append(place)
            try:
                while self._next() is not place:
                    self._changed.wait(POLL_SECONDS)
                    check()
                self._working[client] += 1
            finally:
                self._waiting.remove(place)
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
        """Who may begin now; None where all wait."""
        total = self._working.total()
        allowed = [place for place in self._waiting if total < self._turns_for(place[1])]
        return min(allowed, key=lambda place: self._working[place[1]], default=None)  # the first of equal ones

    def _turns_for(self, client: str) -> int:
        return self._at_once + (0 if self._working[client] else self._apart)
