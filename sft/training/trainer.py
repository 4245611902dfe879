"""TRL's SFTTrainer with faster losses, a token-weighted evaluation loss, and checks for divergence."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from sft.checkpoints.checkpointing import CheckpointingTrainer
from sft.kernels.fused_lora import fuse_adapters
from sft.kernels.loss import POSITIONS
from sft.models.sharding import average_the_rest, is_sharded
from sft.training.batches import InformedCollator, LengthGroups, SharedBatches, TokenBatches
from sft.training.divergence import LossGuard, check_finite
from sft.training.interruption import Stopped
from sft.training.layout import LOSSES, Layout
from sft.training.noise import EmbeddingNoise
from sft.training.random_state import untouched_random_state


class SupervisedTrainer(CheckpointingTrainer):
    """SFTTrainer with atomic checkpoints and a loss that `layout` selects:

    - `documents`: rows concatenated into (1, T), attention per document, head and loss on supervised positions only;
    - `padded`: rows padded to (B, T), head and loss on supervised positions only;
    - `trl`: TRL's own loss (on CUDA its fused head scores supervised positions only);
    - `logits`: rows padded to (B, T), the model's own logits.

    The loss is the same in all: sum of NLL / number of supervised tokens, over all batches of an optimizer step.
    Evaluation divides the same way over all held-out rows, where the Trainer averages the batches' means.

    A step waits for the device once, before the optimizer's (`_close_step`): losses are added up there.

    Args:
        max_batch_tokens: fill batches up to this many tokens; None for a fixed number of rows.
        loraplus_lr_ratio: LoRA+, lr(B) / lr(A); None for one rate.
        neftune_noise_alpha: NEFTune; None for no noise.
    """

    def __init__(
        self,
        *args: Any,
        layout: Layout,
        max_batch_tokens: int | None = None,
        loraplus_lr_ratio: float | None = None,
        neftune_noise_alpha: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if is_sharded(self.model):
            average_the_rest(self.accelerator)
        self.layout = layout
        if layout != "trl":
            fuse_adapters(self.model)
        self.max_batch_tokens = max_batch_tokens
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.noise = None if neftune_noise_alpha is None else EmbeddingNoise(neftune_noise_alpha)
        self.data_collator: Any = InformedCollator(self.data_collator)
        self.loss_guard = LossGuard(self.model.get_input_embeddings().weight.shape[0])
        self.step_loss = 0.0  # loss of the last optimizer step, over all its batches and processes
        self.step_losses, self.counted_steps = 0.0, 0  # sum of step_loss over the steps taken, and their number
        self.grad_norm: float | None = None
        self.trained_tokens = 0
        self.eval_parts: dict[str, Dataset] = {}  # held-out rows by label, if their loss is also measured apart
        self.name_row: Callable[[int], str] | None = None  # names a row by its number; None: numbers say enough
        self.is_stopping: Callable[[], bool] | None = None  # set when several processes must stop at the same step
        self._open_step()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's `train`, with NEFTune's noise on the embeddings if it is configured."""
        with self.noise.attach(self.model.get_input_embeddings()) if self.noise else nullcontext():
            result = super().train(*args, **kwargs)
        self.show_weights()
        return result

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the supervised tokens, a scalar."""
        if self.layout == "trl" or return_outputs:
            plain = {name: value for name, value in inputs.items() if name != POSITIONS}
            return super().compute_loss(model, plain, return_outputs, num_items_in_batch)
        sum_loss = LOSSES[self.layout]
        total, count = sum_loss(self.model, inputs) if model is self.model else self._sum_wrapped_nll(model, inputs)
        if num_items_in_batch is None:
            return total / count.clamp(min=1)
        # num_items_in_batch counts the tokens of all processes; DDP averages gradients over them, hence the factor.
        return total * self.accelerator.num_processes / torch.as_tensor(num_items_in_batch).clamp(min=1)

    def _sum_wrapped_nll(self, wrapper: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Compute the loss as the DDP wrapper's forward pass: it averages the gradients of no other."""
        sum_loss, forward, own = LOSSES[self.layout], self.model.forward, vars(self.model).get("forward")

        def sum_once(**features: Any) -> tuple[Tensor, Tensor]:
            self.model.forward = forward  # the loss may call it
            return sum_loss(self.model, features)

        self.model.forward = sum_once
        try:
            total, count = wrapper(**inputs)
            return total, count
        finally:
            del self.model.forward
            if own is not None:
                self.model.forward = own

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run one batch forward and backward. Raises Stopped."""
        self._raise_if_stopped()
        self._batch_tokens += inputs.pop("tokens")
        self._batch_rows.append(inputs.pop("rows"))
        if self.noise:
            self.noise.read_lengths(inputs)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._batch_losses.append(loss)
        return loss

    def _raise_if_stopped(self) -> None:
        """Raise Stopped in all processes once one of them is asked to stop, so that none waits in a collective call."""
        if self.is_stopping is not None:
            is_stopping = torch.tensor(float(self.is_stopping()), device=self.args.device)
            if self.accelerator.reduce(is_stopping, "sum").item():
                raise Stopped

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Mean loss over all supervised tokens of the held-out rows, independent of how they are batched.

        With `eval_parts` also that of each part, `eval_loss/<label>`.
        """
        self.model.eval()
        self.show_weights()
        with untouched_random_state():  # evaluation must not change the training that follows
            loaders = {label: self.get_eval_dataloader(part) for label, part in self.eval_parts.items()}
            parts = {label: self._sum_losses(loader) for label, loader in loaders.items()}
            sums = sum(parts.values()) if parts else self._sum_losses(dataloader)
        names = {f"{metric_key_prefix}_loss": sums} | {f"eval_loss/{label}": part for label, part in parts.items()}
        totals = self.accelerator.reduce(torch.stack([*names.values()]), "sum").tolist()
        metrics = {name: total / max(count, 1) for name, (total, count) in zip(names, totals, strict=True)}
        metrics[f"{metric_key_prefix}_supervised_tokens"] = totals[0][1]
        return EvalLoopOutput(None, None, metrics, self.num_examples(dataloader))

    def _sum_losses(self, dataloader: Any) -> Tensor:
        """NLL and supervised tokens of these batches, (2,), in fp64 so that a long sum loses nothing."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for inputs, counts in self._take_turns(dataloader):
            prepared = self._prepare_inputs(
                {name: value for name, value in inputs.items() if name not in ("rows", "tokens")}
            )
            with torch.no_grad(), self.compute_loss_context_manager():
                total, count = LOSSES[self.layout](self.model, prepared)
            if counts:
                sums += torch.stack([total.detach().double(), count.double()])
        return sums

    def _take_turns(self, dataloader: Any) -> Iterator[tuple[dict[str, Any], bool]]:
        """The batches, each with whether it counts.

        All processes have a part in gathering the weights of a split model. One that has run out of batches goes on
        with one that does not count while another has any.
        """
        if not is_sharded(self.model):
            yield from ((inputs, True) for inputs in dataloader)
            return
        batches = iter(dataloader)
        inputs = next(batches, None)
        [filler] = broadcast_object_list([inputs])  # of rank 0, which has no fewer batches than the others
        while self.accelerator.reduce(torch.tensor(float(inputs is not None), device=self.args.device), "sum").item():
            yield dict(filler if inputs is None else inputs), inputs is not None
            inputs = next(batches, None)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer, or LoRA+'s."""
        if self.loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer: Any = create_loraplus_optimizer(
            self.model,
            kind,
            loraplus_lr_ratio=self.loraplus_lr_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **options,
        )
        return self.optimizer

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Leave a split model where it was loaded."""
        if not is_sharded(model):
            super()._move_model_to_device(model, device)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card: checkpoints need none."""

    def _send_telemetry(self) -> None:
        """Send nothing: no data about a user's training leaves the machine."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in ("row", "rows") if name not in self._signature_columns]

    def _get_dataloader(
        self, dataset: Dataset, description: str, batch_size: int, *args: Any, is_training: bool = False, **kwargs: Any
    ) -> DataLoader[Any]:
        # False for evaluation: accelerate would repeat rows to give all processes as many batches.
        self.accelerator.even_batches = is_training
        batches = self._choose_batches(dataset, batch_size, is_training)
        if batches is None:
            return super()._get_dataloader(dataset, description, batch_size, *args, is_training=is_training, **kwargs)
        rows = self._remove_unused_columns(dataset, description=description)
        pin = self.args.dataloader_pin_memory
        loader = self.accelerator.prepare(
            DataLoader(rows, batch_sampler=batches, collate_fn=self.data_collator, pin_memory=pin)
        )
        if loader.batch_sampler is not batches:
            # accelerate's shard of the batches for this process. When a resumed run skips batches, accelerate looks
            # for `set_epoch` at this attribute; without it every epoch would have the order of the first.
            loader.batch_sampler.sampler = batches
        return loader

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):  # its order can't be reproduced when a run resumes
            return LengthGroups(sampler.lengths, sampler.batch_size, self.args.seed)
        return sampler

    def _choose_batches(
        self, dataset: Dataset, batch_size: int, is_training: bool
    ) -> TokenBatches | SharedBatches | None:
        """Our batch sampler for a token budget or for several training processes; None for the Trainer's."""
        processes, seed = self.accelerator.num_processes, self.args.seed
        if self.max_batch_tokens is not None:
            padded = self.layout != "documents"
            if is_training:
                return TokenBatches(dataset["length"][:], self.max_batch_tokens, padded, seed, multiple_of=processes)
            return TokenBatches(dataset["length"][:], self.max_batch_tokens, padded)
        if is_training and processes > 1:
            return SharedBatches(SeedableRandomSampler(dataset, data_seed=seed), batch_size, processes)
        return None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once before each optimizer step, after all its batches: check their loss and gradient here."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._close_step(torch.as_tensor(norm, device=self.args.device))
        return norm

    def _open_step(self) -> None:
        self._batch_losses: list[Tensor] = []
        self._batch_rows: list[list[int]] = []
        self._batch_tokens = 0

    def _close_step(self, norm: Tensor) -> None:
        """Sum up and check the optimizer step. Raises LossNotFinite or LossExploded."""
        # The only wait for the device in a step: all its numbers at once.
        numbers = torch.stack([number.detach().double() for number in (*self._batch_losses, norm)]).tolist()
        losses, self.grad_norm = numbers[:-1], numbers[-1]
        for batch_loss, batch_rows in zip(losses, self._batch_rows, strict=True):
            self._check_finite("loss", batch_loss, batch_rows)
        loss, tokens = sum(losses), self._batch_tokens
        rows = [row for batch_rows in self._batch_rows for row in batch_rows]
        if self.accelerator.num_processes > 1:
            sums = torch.tensor([loss / self.accelerator.num_processes, tokens], dtype=torch.float64)
            loss, tokens = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
            rows = gather_object(rows)
        self.step_loss = loss
        self.step_losses += loss
        self.counted_steps += 1
        self.trained_tokens += int(tokens)
        if not self.args.fp16:  # fp16's loss scaler skips steps with infinite gradients
            self._check_finite("gradient", self.grad_norm or 0.0, rows)
        self.loss_guard.check(loss, self._where(), self._name_rows(rows), self.args.learning_rate)
        self._open_step()

    def _name_rows(self, rows: list[int]) -> list[int] | list[str]:
        return rows if self.name_row is None else [self.name_row(row) for row in sorted(rows)]

    def _check_finite(self, what: str, value: float, rows: list[int]) -> None:
        is_untrained = self.state.global_step == 0
        named = self._name_rows(rows) if not math.isfinite(value) else rows
        check_finite(what, value, self._where(), named, self.args.learning_rate, self.model, is_untrained)

    def _where(self) -> str:
        return f"step {self.state.global_step + 1} of {self.state.max_steps}"
