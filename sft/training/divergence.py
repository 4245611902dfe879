"""Stops training whose loss is NaN, infinite or exploded, with a message that names the step and the rows."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft.errors import LossExploded, LossNotFinite, ModelUnusable
from sft.models.finite import find_broken_weight

if TYPE_CHECKING:
    from torch import nn

PATIENCE_STEPS = 5  # one hard batch must not end a run
FACTOR_OF_START = 2.0  # an untrained model starts at about ln(V), which alone is not an explosion
SHARE_OF_RANDOM = 0.9  # of ln(V); a model whose outputs have collapsed stays near 1
SHOWN_ROWS = 20


class LossGuard:
    """Stops a run whose loss has exploded.

    Exploded: for PATIENCE_STEPS optimizer steps in a row
    loss > max(SHARE_OF_RANDOM * ln(V), FACTOR_OF_START * min(loss of the first PATIENCE_STEPS steps)),
    where ln(V) is the loss of guessing every token at random. A run that learns comes near neither.

    Args:
        vocabulary: V, the number of tokens the model predicts.
    """

    def __init__(self, vocabulary: int) -> None:
        self.random_loss = math.log(vocabulary)
        self._first: list[float] = []
        self._above = 0

    def check(self, loss: float, where: str, rows: Sequence[int] | Sequence[str], learning_rate: float) -> None:
        """Check the loss of one optimizer step. Raises LossExploded, naming the step and the rows of its batch."""
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


def check_finite(
    what: str,
    value: float,
    where: str,
    rows: Sequence[int] | Sequence[str],
    learning_rate: float,
    model: "nn.Module | None" = None,
    is_untrained: bool = False,
) -> None:
    """Raise LossNotFinite, naming the step and the rows of its batch, when `value` is NaN or infinite.

    Args:
        model: checked for broken weights, which may be the cause.
        is_untrained: no weight has been changed yet, so the learning rate is not the cause.

    Raises:
        ModelUnusable: the base model's own weights hold such values.
    """
    if math.isfinite(value):
        return
    if model is not None:
        check_base(model, f"the {what} became {value} at {where}", is_untrained)
    remedy = f"lower learning_rate (it is {learning_rate:g}) or look for broken data"
    if is_untrained:
        remedy = (
            "no weight had been changed yet, so the model itself computes it in this dtype: set mixed_precision to "
            "none (or bf16 instead of fp16), or look for broken data"
        )
    raise LossNotFinite(f"the {what} became {value} at {where}; {remedy}{name_rows(rows)}")


def check_base(model: "nn.Module", found: str, is_untrained: bool = True) -> None:
    """Raise ModelUnusable when weights that no step has changed are NaN or infinite; `found` says how it showed."""
    if name := find_broken_weight(model, is_untrained):
        raise ModelUnusable(
            f"base_model can't be trained: {name} holds NaN or infinite numbers, in its files or in the dtype they are "
            f"loaded in ({found}); copy or download it again, set mixed_precision to none, or take another model"
        )


def name_rows(rows: Sequence[int] | Sequence[str]) -> str:
    """`; the batch had rows 3, 7 of the data file`; empty when the numbers are not known.

    Args:
        rows: numbers, or the names of rows of several files, in order.
    """
    if not rows:
        return ""
    are_named = isinstance(rows[0], str)
    numbers = list(rows) if are_named else sorted(rows)
    shown = ", ".join(str(row) for row in numbers[:SHOWN_ROWS])
    more = f" and {len(numbers) - SHOWN_ROWS} more" if len(numbers) > SHOWN_ROWS else ""
    return (
        f"; the batch had row{'s' if len(numbers) > 1 else ''} {shown}{more}{'' if are_named else ' of the data file'}"
    )
