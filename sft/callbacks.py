"""Callbacks that a user's code can attach to a training run."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

OnEvent = Callable[[str, dict[str, Any]], None]


class SFTCallback:
    """Base class of a user's callbacks: override the methods you need. `event` has the values of the event."""

    def on_train_begin(self, trainer: Any, event: dict[str, Any]) -> None:
        """Before the first step."""

    def on_step_end(self, trainer: Any, event: dict[str, Any]) -> None:
        """After each optimizer step, with `step`, `total_steps`, `loss` and the like."""

    def on_epoch_end(self, trainer: Any, event: dict[str, Any]) -> None:
        """After each pass over the data."""

    def on_evaluate(self, trainer: Any, event: dict[str, Any]) -> None:
        """After an evaluation, with `eval_loss`."""

    def on_save(self, trainer: Any, event: dict[str, Any]) -> None:
        """After a checkpoint, with its `path`."""

    def on_train_end(self, trainer: Any, event: dict[str, Any]) -> None:
        """After the last step, with the result."""


CALLBACK_METHODS = {
    "begin": "on_train_begin",
    "step": "on_step_end",
    "epoch": "on_epoch_end",
    "evaluate": "on_evaluate",
    "checkpoint": "on_save",
    "end": "on_train_end",
}


def send_to_callbacks(callbacks: Sequence[SFTCallback], trainer: Any) -> OnEvent:
    """An `on_event` that calls each callback's method for the event, with this trainer.

    An exception in a callback is logged; the other callbacks are still called, and training continues.
    """

    def send(name: str, event: dict[str, Any]) -> None:
        if name not in CALLBACK_METHODS:
            return
        for callback in callbacks:
            try:
                getattr(callback, CALLBACK_METHODS[name])(trainer, dict(event))
            except Exception:
                logger.exception("%s of %r failed", CALLBACK_METHODS[name], callback)

    return send
