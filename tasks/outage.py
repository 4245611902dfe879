"""Retry the MLflow calls that a job cannot do without; buffer its metrics while MLflow is down."""

import contextvars
import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt

from jobs.errors import RegistryUnavailable
from jobs.retrying import patient, waited_seconds
from tasks.causes import is_mlflow_away, name_kinds

if TYPE_CHECKING:
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SECOND_WORDS = ("uniqueviolation", "unique constraint")  # messages of PostgreSQL and SQLite

PATIENCE_SECONDS = 120.0  # then another attempt at the job is better; a request's timeout may come on top
REQUEST_TIMEOUT_SECONDS = 60  # without a byte from the server
MOST_RACES = 5  # lost in a row to other jobs
SEND_SECONDS = 1.0
KEPT_POINTS = 100_000  # some 30 MB
BATCH_POINTS = 1000  # MLflow's maximum per request


def keep_trying(act: Callable[[], T], what: str, patience_seconds: float = PATIENCE_SECONDS) -> T:
    """Call `act` until MLflow responds, and return its result; `act` must be idempotent, as a response may be lost.

    Args:
        what: what is being done, for messages.

    Raises:
        RegistryUnavailable: MLflow stayed down.
    """
    fail_fast()
    tell = functools.partial(logger.warning, "MLflow is down while %s; waiting for it (%s)", what)
    races = Retrying(retry=retry_if_exception(_has_lost_race), stop=stop_after_attempt(1 + MOST_RACES), reraise=True)
    tries = patient(retry_if_exception(is_mlflow_away), patience_seconds, tell=tell)
    try:
        result: T = tries(races, act)
    except Exception as error:
        if not is_mlflow_away(error):
            raise
        waited = waited_seconds(tries)
        raise RegistryUnavailable(
            f"MLflow did not respond for {waited:.0f} s while {what}; see `tuneyard status` ({_show(error)})"
        ) from error
    if waited := waited_seconds(tries):
        logger.info("MLflow is back after %.0f s", waited)
    return result


def _has_lost_race(error: BaseException) -> bool:
    """Whether another job created the same object at the same moment, such as a dataset that both use.

    MLflow checks for it and creates it without a lock; its database refuses the second one.
    """
    text = str(error).lower()
    return "mlflow.exceptions.RestException" in name_kinds(error) and any(words in text for words in _SECOND_WORDS)


def fail_fast() -> None:
    """Turn off the retries of MLflow's client in this process.

    They continue for minutes, and create a second version if only the first response was lost.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_SECONDS))


class _MetricsGivenUp(Exception):
    """The remaining points are not sent."""


class MetricSender:
    """Sends metrics in batches and in order from its own thread, so that a slow server does not block training.

    While MLflow is down, the newest `kept_points` are buffered and sent once it is back.
    """

    def __init__(self, send: "Callable[[Sequence[Metric]], None]", kept_points: int = KEPT_POINTS) -> None:
        self._send = send
        self._points: deque[Metric] = deque()
        self._kept_points = kept_points
        self._lost = 0  # points dropped from the full buffer
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._last: Callable[[], None] = lambda: None
        away = "MLflow is down; metrics are buffered and sent once it is back (%s)"
        tell = functools.partial(logger.warning, away)
        self._tries = patient(retry_if_exception(is_mlflow_away), tell=tell, sleep=self._pause)
        run_as_here = contextvars.copy_context().run  # so that Prefect assigns the thread's log lines to this run
        self._thread = threading.Thread(target=run_as_here, args=(self._run,), name="metrics", daemon=True)
        self._thread.start()

    def put(self, points: "Sequence[Metric]") -> None:
        """Queue these points; returns at once."""
        with self._lock:
            self._points.extend(points)
            while len(self._points) > self._kept_points:
                self._points.popleft()
                self._lost += 1

    def close(self, last: Callable[[], None], seconds: float) -> bool:
        """Send the rest and then call `last`, within this time; False if MLflow did not respond."""
        self._last = last
        self._closing.set()
        self._thread.join(seconds)
        self._given_up.set()
        is_done = not self._thread.is_alive()
        if not is_done:
            logger.warning("MLflow did not accept the last metrics within %.0f s: %s", seconds, self._count())
        return is_done

    def _run(self) -> None:
        while not self._closing.wait(SEND_SECONDS):
            self._send_all()
        self._send_all()
        self._repeat(self._last)

    def _send_all(self) -> None:
        while True:
            with self._lock:
                batch = [self._points.popleft() for _ in range(min(BATCH_POINTS, len(self._points)))]
            if not batch:
                return

            def send(batch: "list[Metric]" = batch) -> None:
                self._send(batch)

            if not self._repeat(send):
                with self._lock:  # for the number of unsent points
                    self._points.extendleft(reversed(batch))
                return

    def _repeat(self, act: Callable[[], None]) -> bool:
        """Repeat it until MLflow has accepted or refused it; False if given up."""
        try:
            self._pause(0)
            self._tries(act)
        except _MetricsGivenUp:
            return False
        except Exception as error:
            logger.warning("MLflow refused metrics; they are lost (%s)", _show(error))
        else:
            if waited := waited_seconds(self._tries):
                logger.info("MLflow is back after %.0f s; %s", waited, self._count())
        return True

    def _pause(self, seconds: float) -> None:
        if self._given_up.wait(seconds):
            raise _MetricsGivenUp

    def _count(self) -> str:
        with self._lock:
            waiting, lost, self._lost = len(self._points), self._lost, 0
        return f"{waiting} points are not sent yet" + (f", the oldest {lost} were dropped" if lost else "")


def _show(error: Exception) -> str:
    return type(error).__name__
