"""Early stopping: the best checkpoint is kept, and training ends once nothing gets better."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.checkpoints.best import find_best


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
        best = find_best(state.log_history)
        if best is not None and best.evaluations_since >= self.patience:
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide what this evaluation means."""
        best = find_best(state.log_history)
        if best is None:  # nothing of ours was measured
            return
        control.should_save = control.should_save or best.step == state.global_step
        control.should_training_stop = control.should_training_stop or best.evaluations_since >= self.patience
