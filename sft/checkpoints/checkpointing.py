"""TRL's SFTTrainer with checkpoints that are published atomically and resume exactly."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers.trainer import TRAINING_ARGS_NAME
from trl import SFTTrainer

from sft.checkpoints.best import find_best
from sft.checkpoints.folders import (
    PRECISION,
    STATE,
    clear_leftovers,
    find_damage,
    publish_checkpoint,
    rotate_checkpoints,
    stage_checkpoint,
    staged_folder,
)
from sft.errors import CheckpointUnusable
from sft.files.disk import raising_disk_full
from sft.files.publication import Publishing


class CheckpointingTrainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped here
    """Saves each checkpoint to a staging folder, seals it with a manifest and renames it into place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._published: set[Path] = set()  # checkpoints saved by this process, known to be intact
        self.publishing: Publishing = nullcontext
        self.precision = "none"

    def load_weights(self, step: int) -> None:
        """Load the weights of the checkpoint of this step. Raises CheckpointUnusable."""
        folder = Path(self.args.output_dir) / f"checkpoint-{step}"
        damage = find_damage(folder)
        if damage is not None:
            raise CheckpointUnusable(f"the best checkpoint {folder} is damaged: {damage}; start the job again")
        self.state.best_model_checkpoint = str(folder)
        self._load_best_model()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's epoch, skipped after the last step: when resumed there, the Trainer takes one step more."""
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save what the Trainer saves to a staging folder and publish it. Raises DiskFull."""
        with self.publishing() if self.args.should_save else nullcontext():
            self._publish_checkpoint(Path(self.args.output_dir), self.state.global_step, self.args.should_save)

    def _publish_checkpoint(self, directory: Path, step: int, leads: bool) -> None:
        self.store_flos()
        try:
            with raising_disk_full(directory, f"the checkpoint of step {step}", self._measure_checkpoint()):
                if leads:
                    stage_checkpoint(directory, step)
                self.accelerator.wait_for_everyone()  # each process adds its random state
                self._write_checkpoint(staged_folder(directory, step))
                self.accelerator.wait_for_everyone()
                if leads:
                    newest = publish_checkpoint(staged_folder(directory, step))
        except BaseException:
            if leads:
                clear_leftovers(directory)
            raise
        if leads:
            best = find_best(self.state.log_history)
            rotate_checkpoints(newest, self.args.save_total_limit, best and best.step, self._published)
            self._published.add(newest)
        self.accelerator.wait_for_everyone()

    def show_weights(self) -> None:
        """Put the weights for inference into the model: schedule-free optimizers swap them in with `eval`.

        The Trainer calls the optimizer's `train` again at the next step.
        """
        if self.optimizer is not None and callable(getattr(self.optimizer, "eval", None)):
            self.optimizer.eval()

    def _write_checkpoint(self, folder: Path) -> None:
        self.show_weights()
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink()  # a pickle that nothing reads
            (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the result gets a model card
            self.state.save_to_json(str(folder / STATE))
            (folder / PRECISION).write_text(json.dumps({"mixed_precision": self.precision}), encoding="utf-8")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The Trainer's `_save`, but PEFT is kept from reading the base model's config.json again."""
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        self.model.save_pretrained = partial(self.model.save_pretrained, save_embedding_layers=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del self.model.save_pretrained

    def _measure_checkpoint(self) -> int:
        """Approximate bytes of a checkpoint: trained weights and optimizer state."""
        kept = [value for values in self.optimizer.state.values() for value in values.values()]
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return sum(value.nbytes for value in (*trained, *kept) if isinstance(value, Tensor))
