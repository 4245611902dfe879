"""When training has gone wrong for good, and what to tell the user then."""

import math
from collections.abc import Sequence

from sft.errors import LossExploded, LossNotFinite

PATIENCE_STEPS = 5
FACTOR_OF_START = 2.0
SHARE_OF_RANDOM = 0.9  # a model whose outputs have collapsed hovers at 1
SHOWN_ROWS = 20


class LossGuard:
    """Stops a run whose loss has exploded.

    Exploded means: for `PATIENCE_STEPS` optimizer steps in a row the loss was above both `SHARE_OF_RANDOM` of what
    guessing every token at random has, ln(vocabulary), and `FACTOR_OF_START` times the lowest of the first
    `PATIENCE_STEPS` steps.
    A run that learns comes near neither; one hard batch, or a model that begins untrained, is not enough.

    Args:
        vocabulary: number of tokens the model tells apart.
    """

    def __init__(self, vocabulary: int) -> None:
        self.random_loss = math.log(vocabulary)
        self._first: list[float] = []
        self._above = 0

    def check(self, loss: float, where: str, rows: Sequence[int], learning_rate: float) -> None:
        """Take the loss of one optimizer step. Raises LossExploded, naming the step and the rows of its batch."""
        if len(self._first) < PATIENCE_STEPS:
            self._first.append(loss)
            return
        start = min(self._first)
        limit = max(SHARE_OF_RANDOM * self.random_loss, FACTOR_OF_START * start)
        self._above = self._above + 1 if loss > limit else 0
        if self._above >= PATIENCE_STEPS:
            raise LossExploded(
                f"the loss exploded: {loss:.3g} at {where}, above {limit:.3g} for {PATIENCE_STEPS} steps (it began at "
                f"{start:.3g}, guessing at random has {self.random_loss:.3g}); lower learning_rate (it is "
                f"{learning_rate:g}){name_rows(rows)}"
            )


def check_finite(what: str, value: float, where: str, rows: Sequence[int], learning_rate: float) -> None:
    """Raises LossNotFinite, naming the step and the rows of its batch, when `value` is NaN or infinite."""
    if not math.isfinite(value):
        raise LossNotFinite(
            f"the {what} became {value} at {where}; lower learning_rate (it is {learning_rate:g}) "
            f"or look for broken data{name_rows(rows)}"
        )


def name_rows(rows: Sequence[int]) -> str:
    """`: the batch had rows 3, 7 of the data file`; empty when the numbers are not known."""
    if not rows:
        return ""
    numbers = sorted(rows)
    shown = ", ".join(str(row) for row in numbers[:SHOWN_ROWS])
    more = f" and {len(numbers) - SHOWN_ROWS} more" if len(numbers) > SHOWN_ROWS else ""
    return f"; the batch had row{'s' if len(numbers) > 1 else ''} {shown}{more} of the data file"
