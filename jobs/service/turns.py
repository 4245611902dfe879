"""`Turns`: threads take turns; requests that arrive during one turn are handled together in the next (group commit)."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from sft.errors import StackError

W = TypeVar("W")
R = TypeVar("R")

TIMEOUT_SECONDS = 60.0


class Ticket(Generic[W, R]):
    """A thread's request, and its result."""

    def __init__(self, wanted: W) -> None:
        self.wanted = wanted
        self.result: R | None = None
        self.error: BaseException | None = None
        self.is_done = False


class Turns(Generic[W, R]):
    """Handles requests of threads in order of arrival. Thread-safe.

    Args:
        work: handles these requests, and sets `result` or `error` of each. An exception is the error of all of them.
        select: how many of the waiting requests are handled in one turn, at least 1.
    """

    def __init__(
        self, work: Callable[[list[Ticket[W, R]]], None], select: Callable[[Sequence[W]], int] = lambda _: 1
    ) -> None:
        self._work = work
        self._select = select
        self._changed = threading.Condition()
        self._waiting: deque[Ticket[W, R]] = deque()
        self._is_working = False

    def take(self, wanted: W, timeout_seconds: float = TIMEOUT_SECONDS) -> R:
        """Wait for a turn that handles this request; returns its result.

        Raises:
            StackError: no turn has begun in time.
        """
        ticket: Ticket[W, R] = Ticket(wanted)
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._waiting.append(ticket)
        while batch := self._find_work(ticket, deadline):
            self._do(batch)
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[return-value]

    def _find_work(self, ticket: Ticket[W, R], deadline: float) -> list[Ticket[W, R]]:
        """Wait until the ticket is done, or this thread has the next turn; returns the tickets to handle."""
        with self._changed:
            while self._is_working and not ticket.is_done:
                is_waiting = ticket in self._waiting  # else another thread works for it
                left = deadline - time.monotonic() if is_waiting else None
                if left is not None and left <= 0:
                    self._waiting.remove(ticket)
                    raise StackError(f"waited {TIMEOUT_SECONDS:.0f} s for other submissions; send the request again")
                self._changed.wait(left)
            if ticket.is_done:
                return []
            self._is_working = True
            count = self._select([one.wanted for one in self._waiting])
            return [self._waiting.popleft() for _ in range(count)]

    def _do(self, batch: list[Ticket[W, R]]) -> None:
        try:
            self._work(batch)
        except BaseException as error:
            for ticket in batch:
                ticket.error = error
        finally:
            with self._changed:
                for ticket in batch:
                    ticket.is_done = True
                self._is_working = False
                self._changed.notify_all()
