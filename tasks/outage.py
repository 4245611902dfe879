"""Retry the MLflow calls that a job cannot do without; keep its metrics while MLflow is away."""

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

_SECOND_WORDS = ("uniqueviolation", "unique constraint")  # PostgreSQL's, SQLite's

PATIENCE_SECONDS = 120.0  # and one request's timeout at most, before another attempt at the job is better
REQUEST_TIMEOUT_SECONDS = 60  # without a byte from the server
MOST_RACES = 5  # in a row, that a thing of another job came first
SEND_SECONDS = 1.0
KEPT_POINTS = 100_000  # some 30 MB
BATCH_POINTS = 1000  # the most that MLflow takes at once


def keep_trying(act: Callable[[], T], what: str, patience_seconds: float = PATIENCE_SECONDS) -> T:
    """What `act` returns, as soon as MLflow is there; it must be fit to be repeated after an answer was lost.

    Args:
        what: is being done, for the messages.

    Raises:
        RegistryUnavailable: MLflow stayed away.
    """
    fail_fast()
    tell = functools.partial(logger.warning, "MLflow is away while %s; waiting for it (%s)", what)
    races = Retrying(retry=retry_if_exception(_has_lost_race), stop=stop_after_attempt(1 + MOST_RACES), reraise=True)
    tries = patient(retry_if_exception(is_mlflow_away), patience_seconds, tell=tell)
    try:
        result: T = tries(races, act)
    except Exception as error:
        if not is_mlflow_away(error):
            raise
        waited = waited_seconds(tries)
        raise RegistryUnavailable(
            f"MLflow did not answer for {waited:.0f} s while {what}; see `tuneyard status` ({_show(error)})"
        ) from error
    if waited := waited_seconds(tries):
        logger.info("MLflow is back after %.0f s", waited)
    return result


def _has_lost_race(error: BaseException) -> bool:
    """Whether another job made the same thing in the same moment, a dataset both learn from, say.

    MLflow looks for it and makes it if it is not there, without a lock; its database refuses the second one.
    """
    text = str(error).lower()
    return "mlflow.exceptions.RestException" in name_kinds(error) and any(words in text for words in _SECOND_WORDS)


def fail_fast() -> None:
    """Keep MLflow's client from repeating requests by itself, in this process.

    It would do so for minutes, and make a version twice when only the first answer was lost.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_SECONDS))


class _GivenUp(Exception):
    """What is left is not sent any more."""


class MetricSender:
    """Sends values from a thread of its own, together and in order, so that no server holds up training.

    While MLflow is away they are kept, the newest `kept_points` of them, and sent once it is back.
    """

    def __init__(self, send: "Callable[[Sequence[Metric]], None]", kept_points: int = KEPT_POINTS) -> None:
        self._send = send
        self._points: deque[Metric] = deque()
        self._kept_points = kept_points
        self._lost = 0  # points that were too many
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._last: Callable[[], None] = lambda: None
        away = "MLflow is away; metrics are kept and sent once it is back (%s)"
        tell = functools.partial(logger.warning, away)
        self._tries = patient(retry_if_exception(is_mlflow_away), tell=tell, sleep=self._pause)
        run_as_here = contextvars.copy_context().run  # else Prefect would not know whose log lines these are
        self._thread = threading.Thread(target=run_as_here, args=(self._run,), name="metrics", daemon=True)
        self._thread.start()

    def put(self, points: "Sequence[Metric]") -> None:
        """Have these sent; returns at once."""
        with self._lock:
            self._points.extend(points)
            while len(self._points) > self._kept_points:
                self._points.popleft()
                self._lost += 1

    def close(self, last: Callable[[], None], seconds: float) -> bool:
        """Send what is left and then do `last`, within this time; False when MLflow was not there for it."""
        self._last = last
        self._closing.set()
        self._thread.join(seconds)
        self._given_up.set()
        is_done = not self._thread.is_alive()
        if not is_done:
            logger.warning("MLflow did not take the last of the metrics within %.0f s: %s", seconds, self._count())
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
                with self._lock:  # for the count of what was not sent
                    self._points.extendleft(reversed(batch))
                return

    def _repeat(self, act: Callable[[], None]) -> bool:
        """Do it until MLflow has taken or refused it; False when given up."""
        try:
            self._pause(0)
            self._tries(act)
        except _GivenUp:
            return False
        except Exception as error:
            logger.warning("MLflow refused metrics, which it will not show (%s)", _show(error))
        else:
            if waited := waited_seconds(self._tries):
                logger.info("MLflow is back after %.0f s; %s", waited, self._count())
        return True

    def _pause(self, seconds: float) -> None:
        if self._given_up.wait(seconds):
            raise _GivenUp

    def _count(self) -> str:
        with self._lock:
            waiting, lost, self._lost = len(self._points), self._lost, 0
        return f"{waiting} points are not sent yet" + (f", the oldest {lost} were too many to keep" if lost else "")


def _show(error: Exception) -> str:
    return type(error).__name__
