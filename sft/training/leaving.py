"""What a trainer still does once training is over: measures single rows, and lets its memory go."""

import gc
from typing import TYPE_CHECKING

import torch

from sft.training.precision import tf32_products

if TYPE_CHECKING:
    from datasets import Dataset

    from sft.training.trainer import SupervisedTrainer


def measure_rows(trainer: "SupervisedTrainer", rows: "Dataset") -> float:
    """Mean loss of the supervised tokens of these rows, as an evaluation measures it; no event tells of it."""
    parts, trainer.eval_parts = trainer.eval_parts, {}
    try:
        with tf32_products(trainer.precision):
            output = trainer.evaluation_loop(trainer.get_eval_dataloader(rows), "Evaluation")
    finally:
        trainer.eval_parts = parts
    assert output.metrics is not None  # noqa: S101 - ours always has some
    return float(output.metrics["eval_loss"])


def free_model(trainer: "SupervisedTrainer") -> None:
    """Free the weights, their gradients and the optimizer's state; the model can't compute any more."""
    if trainer.optimizer is not None:
        trainer.optimizer.state.clear()
    for tensor in (*trainer.model.parameters(), *trainer.model.buffers()):
        tensor.grad = None
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
