"""Early stopping: keeps the best checkpoint and ends training when evaluations stop improving."""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from sft.checkpoints.best import find_best
from sft.errors import InvalidConfig


class EarlyStopping(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Saves a checkpoint at every best evaluation so far, and stops after `patience` evaluations without one.

    Its state is the Trainer's log, which is in each checkpoint, so a resumed run stops where an uninterrupted one
    does. transformers' own callback needs `save_steps` to be a multiple of `eval_steps` and loses its count.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop at once if the run was interrupted after its last evaluation."""
        best = find_best(state.log_history)
        if best is not None and best.evaluations_since >= self.patience:
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save if this evaluation is the best, stop if patience is used up."""
        best = find_best(state.log_history)
        if best is None:  # the log has no held-out loss
            return
        control.should_save = control.should_save or best.step == state.global_step
        control.should_training_stop = control.should_training_stop or best.evaluations_since >= self.patience


class CatchUp(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Evaluates before the first step if an evaluation was due at the checkpoint's step and its log has none.

    So early stopping decides in a resumed run as in an uninterrupted one.
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


def list_stopping(patience: int | None, has_held_out: bool) -> list[EarlyStopping]:
    """The callback of `early_stopping_patience`, if it is set. Raises InvalidConfig if there are no held-out rows."""
    if patience is None:
        return []
    if not has_held_out:
        raise InvalidConfig(
            f"early_stopping_patience {patience} needs held-out rows and there are none; set validation_split above 0"
        )
    return [EarlyStopping(patience)]
