"""Patience with a server that is away: the one loop of tries and pauses, for the service and its jobs."""

import time
from collections.abc import Callable
from math import inf

from tenacity import RetryCallState, Retrying, retry_base, stop_before_delay, wait_exponential

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0


def patient(
    again: retry_base,
    seconds: float = inf,
    pauses: tuple[float, float] = (FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS),
    tell: Callable[[str], object] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Retrying:
    """Calls a function until its outcome stands, which is returned or raised as it is.

    Args:
        again: which outcomes are worth another try.
        seconds: none begins later than this; then the last outcome stands, whatever it is.
        pauses: the first one, doubled with each try, and the longest.
        tell: called once, before the first pause, with the name of what was raised.
        sleep: makes a pause; what it raises ends the tries.
    """

    def is_worth_it(state: RetryCallState) -> bool:
        error = state.outcome and state.outcome.exception()
        return (error is None or isinstance(error, Exception)) and again(state)  # a signal's, say, ends the tries

    def tell_once(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome:
            tell(type(state.outcome.exception()).__name__)

    def last_outcome(state: RetryCallState) -> object:
        assert state.outcome is not None  # noqa: S101 - for the type checker
        return state.outcome.result()

    first, longest = pauses
    return Retrying(
        retry=is_worth_it,
        stop=stop_before_delay(seconds),
        wait=wait_exponential(first, longest),
        before_sleep=tell_once,
        sleep=sleep,
        retry_error_callback=last_outcome,
    )


def waited_seconds(tries: Retrying) -> float:
    """How long the last call of this thread has waited, its tries included; 0 when the first one stood."""
    paused = tries.statistics["idle_for"] > 0
    return time.monotonic() - float(tries.statistics["start_time"]) if paused else 0.0
