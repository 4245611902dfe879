"""Finds the best evaluation in the Trainer's log."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Best(NamedTuple):
    """The lowest loss on the held-out rows, the step it was measured at, and the evaluations since then."""

    step: int
    eval_loss: float
    evaluations_since: int


def find_best(log: Iterable[Mapping[str, Any]]) -> Best | None:
    """The evaluation with the lowest loss, the first one of equal ones; None without any."""
    losses = [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]
    if not losses:
        return None
    at = min(range(len(losses)), key=lambda index: (math.isnan(losses[index][1]), losses[index][1]))
    return Best(*losses[at], len(losses) - 1 - at)
