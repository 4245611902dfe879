"""Retries calls to a server that is down, with exponential backoff."""

import time
from collections.abc import Callable
from math import inf

from tenacity import RetryCallState, Retrying, retry_base, stop_before_delay, wait_exponential

PAUSES = (0.5, 5.0)  # seconds: the first pause, doubled with each try, and the longest


def patient(
    again: retry_base,
    seconds: float = inf,
    pauses: tuple[float, float] = PAUSES,
    tell: Callable[[str], object] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Retrying:
    """Call a function until its outcome is not worth a retry; that outcome is returned or raised.

    Args:
        again: whether an outcome is worth a retry. A BaseException, such as a signal handler's, never is.
        seconds: no try starts later than this; then the last outcome counts.
        tell: called once, before the first pause, with the name of the exception.
        sleep: pauses; an exception in it ends the retries.
    """

    def is_worth_it(state: RetryCallState) -> bool:
        error = state.outcome and state.outcome.exception()
        return (error is None or isinstance(error, Exception)) and again(state)

    def tell_once(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome:
            tell(type(state.outcome.exception()).__name__)

    return Retrying(
        retry=is_worth_it,
        stop=stop_before_delay(seconds),
        wait=wait_exponential(*pauses),
        before_sleep=tell_once,
        sleep=sleep,
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )


def waited_seconds(tries: Retrying) -> float:
    """Seconds that this thread's last call took with its pauses; 0 if the first try succeeded."""
    paused = tries.statistics["idle_for"] > 0
    return time.monotonic() - float(tries.statistics["start_time"]) if paused else 0.0
