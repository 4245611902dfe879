"""Runs the evaluation that was missed before a resume."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy


class CatchUp(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Evaluates before the first step if an evaluation was due at the checkpoint's step and its log has none.

    So early stopping decides as in an uninterrupted run.
    """

    trainer: Trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run the missed evaluation."""
        step = state.global_step
        if step == 0 or args.eval_strategy != IntervalStrategy.STEPS:
            return
        is_due = step % state.eval_steps == 0 or step >= state.max_steps
        if is_due and not any("eval_loss" in entry and entry["step"] == step for entry in state.log_history):
            self.trainer.evaluate()
