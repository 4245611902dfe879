"""Sends events for the Trainer's progress."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.callbacks import OnEvent


class EventSender(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Turns the Trainer's callbacks into events; loss and tokens are read from the trainer.

    `on_event` is called with the event's name and values, on the training thread; `begin` has further values of the
    first event.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.begin: dict[str, Any] = {}
        self.trainer: Any = None
        self.started_at = 0.0
        self.first_step = 0
        self.learning_rate = 0.0
        self._is_at_start = False

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Send evaluations inside the block as those of step 0, whenever they run."""
        self._is_at_start = True
        try:
            yield
        finally:
            self._is_at_start = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send `begin`."""
        self.started_at, self.first_step = time.monotonic(), state.global_step
        self.on_event("begin", {"step": state.global_step, "total_steps": state.max_steps, **self.begin})

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Store this step's learning rate, before the scheduler advances."""
        self.learning_rate = float(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send `step`, with the loss of this step."""
        seconds = time.monotonic() - self.started_at
        done, left = state.global_step - self.first_step, state.max_steps - state.global_step
        event = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "percent": round(100 * state.global_step / state.max_steps, 1),
            "epoch": state.epoch,
            "loss": self.trainer.step_loss,
            "tokens_per_second": self.trainer.trained_tokens / seconds,
            "eta_seconds": seconds / done * left,
            "learning_rate": self.learning_rate,
            "grad_norm": self.trainer.grad_norm,
        }
        self.on_event("step", event)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Send `log` every `logging_steps`: the mean loss since the last one, learning rate and gradient norm."""
        if logs and "loss" in logs:
            self.on_event("log", {"step": state.global_step, **logs})

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send `epoch`."""
        self.on_event("epoch", {"step": state.global_step, "epoch": state.epoch})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Send `evaluate`."""
        self.on_event("evaluate", {**(metrics or {}), "step": 0 if self._is_at_start else state.global_step})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send `checkpoint`."""
        path = f"{args.output_dir}/checkpoint-{state.global_step}"
        self.on_event("checkpoint", {"step": state.global_step, "path": path})
