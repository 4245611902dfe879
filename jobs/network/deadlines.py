"""Total time limits for calls to Prefect, MLflow and PostgreSQL, and circuit breakers for servers that are down.

A request waits only a few seconds for a read, so that a server that never responds blocks no thread for long. Writes
get more time with `allow`.
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
    """Let each call in the block take this long."""
    token = _allowed.set(seconds)
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed_seconds() -> float:
    """Seconds that a call that starts now may take."""
    return _allowed.get()


@contextmanager
def call_deadline(seconds: float | None = None) -> Iterator[None]:
    """Set the deadline of one call, in `seconds` or `allowed_seconds`; an outer deadline stays in force."""
    end = time.monotonic() + (allowed_seconds() if seconds is None else seconds)
    token = _deadline.set(min(end, _deadline.get()))
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    """Seconds until the current call's deadline; infinite outside of a call."""
    return _deadline.get() - time.monotonic()


@functools.cache
def breaker_for(name: str, url: str, timeout: type[Exception]) -> "Breaker":
    """The process's breaker of this server; `timeout` is the exception that its client raises on a timeout."""
    return Breaker(name, timeout)


def within(chunks: Iterator[bytes], seconds: float, sender: str) -> Iterator[bytes]:
    """Yield what is received. Waiting for it may take `seconds` in total, the consumer's time not counted.

    Raises:
        TimeoutError: it took longer; the message names the sender.
    """
    waited = 0.0
    while True:
        began = time.monotonic()
        chunk = next(chunks, None)
        waited += time.monotonic() - began
        if chunk is None:
            return
        if waited > seconds:
            raise TimeoutError(f"{sender} has sent too little within {seconds:.0f} s")
        yield chunk


class Breaker:
    """Circuit breaker: fails calls at once while a server is known not to respond. Thread-safe.

    While the server is down, one call a second is let through as a probe; the others fail at once. A server that
    responded to others meanwhile is slow, not down.
    """

    def __init__(self, name: str, timeout: type[Exception]) -> None:
        self._name = name
        self._timeout = timeout
        self._lock = threading.Lock()
        self._answered_at = 0.0
        self._next_try: float | None = None  # None while the server responds

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch one call, whose `timeout` means that the server is down. Raises StackError if it is known to be."""
        began = time.monotonic()
        with self._lock:
            if self._next_try is not None:
                if began < self._next_try:
                    raise StackError(f"{self._name} does not respond; see `tuneyard status`")
                self._next_try = began + allowed_seconds() + AWAY_SECONDS  # this call is the probe
        try:
            yield
        except self._timeout:
            with self._lock:
                if self._answered_at < began:
                    self._next_try = time.monotonic() + AWAY_SECONDS
            raise
        except BaseException:
            self._answers()  # even an error response shows that it is up
            raise
        self._answers()

    def _answers(self) -> None:
        with self._lock:
            self._answered_at, self._next_try = time.monotonic(), None
