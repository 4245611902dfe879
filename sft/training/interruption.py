"""Stops a training run by a signal without losing its last complete step."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.checkpoints.folders import is_whole
from sft.training.random_state import RandomState

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
Handler = Callable[[int, Any], Any] | int


class Stopped(BaseException):
    """A DDP worker was asked to stop; raised between two batches, the same two in all workers."""


class StepGuard(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Defers SIGTERM and SIGINT while an optimizer step changes the weights, so that no step is left incomplete.

    Works on the main thread, where Python delivers signals; on other threads nothing interrupts a step.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._held: list[int] = []
        self._random_state: RandomState | None = None  # after the last complete step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start deferring signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None:  # None: not installed by Python, so it could not be restored
                self._handlers[number] = handler
                signal.signal(number, lambda number, _frame: self._held.append(number))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The weights are those of `global_step` again: stop deferring."""
        self._random_state = RandomState.capture()
        self.release()

    def rewind_random_state(self) -> None:
        """Restore the random state of the last complete step."""
        if self._random_state is not None:
            self._random_state.restore()

    def release(self) -> None:
        """Restore the handlers; a deferred signal is handled now, and raises what its handler raises."""
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        held, self._held = self._held, []
        for number in held[:1]:
            signal.raise_signal(number)


def keep_last_step(trainer: Trainer, guard: StepGuard) -> None:
    """Save a checkpoint of the last complete step, unless it has one. Errors are logged, as the run must stop."""
    step = trainer.state.global_step
    if step == 0 or is_whole(Path(trainer.args.output_dir) / f"checkpoint-{step}"):
        return
    try:
        guard.rewind_random_state()
        trainer._save_checkpoint(trainer.model, None)
        trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    except Exception:
        logger.exception("The work since the last checkpoint is lost: step %s can't be saved", step)
