"""What a job does while MLflow is away: it waits for what it must have, and keeps its metrics until they can go."""

import contextvars
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from sft.errors import RegistryUnavailable
from tasks.causes import is_mlflow_away, name_kinds

if TYPE_CHECKING:
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SECOND_WORDS = ("uniqueviolation", "unique constraint")  # PostgreSQL's, SQLite's

PATIENCE_SECONDS = 120.0  # and one request's timeout at most, before another attempt at the job is better
REQUEST_TIMEOUT_SECONDS = 60  # without a byte from the server
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0
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
    began, pause, races = time.monotonic(), FIRST_PAUSE_SECONDS, 0
    while True:
        try:
            result = act()
        except Exception as error:
            if _has_lost_race(error) and races < MOST_RACES:
                races += 1
                continue
            if not is_mlflow_away(error):
                raise
            waited = time.monotonic() - began
            if waited + pause > patience_seconds:
                raise RegistryUnavailable(
                    f"MLflow did not answer for {waited:.0f} s while {what}; see `tuneyard status` ({_show(error)})"
                ) from error
            if pause == FIRST_PAUSE_SECONDS:
                logger.warning("MLflow is away while %s; waiting for it (%s)", what, _show(error))
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        else:
            if pause > FIRST_PAUSE_SECONDS:
                logger.info("MLflow is back after %.0f s", time.monotonic() - began)
            return result


def _has_lost_race(error: Exception) -> bool:
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
        self._away_since: float | None = None
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
        pause = FIRST_PAUSE_SECONDS
        while not self._given_up.is_set():
            try:
                act()
            except Exception as error:
                if not is_mlflow_away(error):
                    logger.warning("MLflow refused metrics, which it will not show (%s)", _show(error))
                    return True
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    logger.warning("MLflow is away; metrics are kept and sent once it is back (%s)", _show(error))
                self._given_up.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            else:
                self._tell_back()
                return True
        return False

    def _tell_back(self) -> None:
        if self._away_since is None:
            return
        logger.info("MLflow is back after %.0f s; %s", time.monotonic() - self._away_since, self._count())
        self._away_since = None

    def _count(self) -> str:
        with self._lock:
            waiting, lost, self._lost = len(self._points), self._lost, 0
        return f"{waiting} points are not sent yet" + (f", the oldest {lost} were too many to keep" if lost else "")


def _show(error: Exception) -> str:
    return type(error).__name__
