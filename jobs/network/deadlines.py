"""How long one call of a Prefect, MLflow or PostgreSQL server may take in all, however slowly bytes come.

A request waits for a read a few seconds only, so that a server that accepts and never answers holds no thread for long.
What writes sets itself more time by `allow`.
"""

import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf

from sft.errors import StackError

READ_SECONDS = 6.0
WRITE_SECONDS = 30.0
AWAY_SECONDS = 1.0

_allowed: ContextVar[float] = ContextVar("allowed_seconds", default=READ_SECONDS)
_deadline: ContextVar[float] = ContextVar("deadline", default=inf)


@contextmanager
def allow(seconds: float) -> Iterator[None]:
    """Within the block each call may take so long."""
    token = _allowed.set(seconds)
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed_seconds() -> float:
    """How long a call that begins now may take."""
    return _allowed.get()


@contextmanager
def call_deadline(seconds: float | None = None) -> Iterator[None]:
    """One call, of so many seconds or of those that are allowed here; within another one that one's end counts too."""
    end = time.monotonic() + (allowed_seconds() if seconds is None else seconds)
    token = _deadline.set(min(end, _deadline.get()))
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    """Until the deadline of the call that is being made; infinite outside of one."""
    return _deadline.get() - time.monotonic()


@functools.cache
def breaker_for(name: str, url: str, timeout: type[Exception]) -> "Breaker":
    """The process's one of this server; `timeout` is what its client raises for a call that took too long."""
    return Breaker(name, timeout)


class Breaker:
    """Spares callers the wait for a server that has just kept one waiting to the end. Thread-safe.

    While it is away one call a second is let through to see; the others are refused at once. A server that answered
    others meanwhile is slow, not away.
    """

    def __init__(self, name: str, timeout: type[Exception]) -> None:
        self._name = name
        self._timeout = timeout
        self._lock = threading.Lock()
        self._answered_at = 0.0
        self._next_try: float | None = None  # None while it answers

    @contextmanager
    def watch(self) -> Iterator[None]:
        """One call, whose `timeout` means that the server is away. Raises StackError where that is known."""
        began = time.monotonic()
        with self._lock:
            if self._next_try is not None:
                if began < self._next_try:
                    raise StackError(f"{self._name} does not answer; see `tuneyard status`")
                self._next_try = began + allowed_seconds() + AWAY_SECONDS  # this call sees; the others do not wait
        try:
            yield
        except self._timeout:
            with self._lock:
                if self._answered_at < began:
                    self._next_try = time.monotonic() + AWAY_SECONDS
            raise
        except BaseException:
            self._answers()  # it may have refused, but it is there
            raise
        self._answers()

    def _answers(self) -> None:
        with self._lock:
            self._answered_at, self._next_try = time.monotonic(), None
