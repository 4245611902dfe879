"""Early stopping: the best checkpoint is kept, and training ends once nothing gets better."""

import math
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Best(NamedTuple):
    """The lowest loss on the held-out rows, the step it was measured at, and the evaluations since then."""

    step: int
    eval_loss: float
    evaluations_since: int


class EarlyStopping(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Asks for a checkpoint at every evaluation that is the best so far, and for the end after `patience` without.

    All it knows it reads from the Trainer's log, which checkpoints carry: a resumed run stops where a whole one does.
    transformers' own callback needs `save_steps` to be a multiple of `eval_steps` and forgets its count at a resume.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that was cut off after its last evaluation is over."""
        if has_evaluations(state) and find_best(state).evaluations_since >= self.patience:
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what this evaluation means."""
        best = find_best(state)
        control.should_save = control.should_save or best.step == state.global_step
        control.should_training_stop = control.should_training_stop or best.evaluations_since >= self.patience


def has_evaluations(state: TrainerState) -> bool:
    """Whether the log holds any."""
    return any("eval_loss" in entry for entry in state.log_history)


def find_best(state: TrainerState) -> Best:
    """The best of the evaluations in the log, the first one if several are equal."""
    losses = [(entry["step"], entry["eval_loss"]) for entry in state.log_history if "eval_loss" in entry]
    at = min(range(len(losses)), key=lambda index: (math.isnan(losses[index][1]), losses[index][1]))
    return Best(*losses[at], len(losses) - 1 - at)
