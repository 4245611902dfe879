"""Checks that a run can change weights and that it did: a job that changes nothing must not complete."""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.errors import InvalidConfig, NothingLearned
from sft.training.effect import VISIBLE, is_visible, sample_weights


class LearningCheck(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Before training, checks that a step has a learning rate above 0; after it, that a weight has changed.

    Set `trainer` once it exists, and call `remember` with the model before the first step.
    """

    def __init__(self) -> None:
        self.trainer: Any = None
        self.steps, self.learning_steps = 0, 0  # optimizer steps of this process, and those that could change a weight
        self._start: dict[str, int] = {}
        self._sample: dict[str, Tensor] = {}
        self._is_resumed = False

    def remember(self, model: nn.Module) -> None:
        """Store hashes and samples of the trainable weights, to compare with after training."""
        self._start = {name: _hash(weight) for name, weight in _find_weights(model)}
        self._sample = sample_weights(_find_weights(model))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise InvalidConfig when no remaining step has a learning rate above 0."""
        self._is_resumed = state.global_step > 0
        scheduler = kwargs["lr_scheduler"]
        rates = getattr(scheduler, "lr_lambdas", None)  # all of our schedules are LambdaLR
        left = range(state.global_step, state.max_steps)
        if rates and left and not any(rate(step) > 0 for step in left for rate in rates):
            raise InvalidConfig(
                f"each of the {len(left)} optimizer steps would have a learning rate of 0 and learn nothing; "
                "lower warmup_ratio, or set max_steps or num_epochs for more steps"
            )

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step, and whether it can change a weight: learning rate and gradient are not 0."""
        self.steps += 1
        self.learning_steps += max(kwargs["lr_scheduler"].get_last_lr()) > 0 and self.trainer.grad_norm != 0

    def check(self, model: nn.Module) -> list[str]:
        """Compare the weights with those before training. Returns warnings.

        Raises:
            NothingLearned: no weight that affects the output has changed.
        """
        changed = {name for name, weight in _find_weights(model) if _hash(weight) != self._start.get(name)}
        had_none = self.steps > 0 and self.learning_steps == 0 and not self._is_resumed
        if had_none or not _find_effective(model, changed):
            raise NothingLearned(_explain(self.trainer, self.steps, self.learning_steps))
        if not is_visible(model, _find_weights(model), self._sample):
            rate = self.trainer.args.learning_rate
            return [
                f"training has changed next to nothing: after {self.steps} optimizer steps no layer has moved by more "
                f"than {VISIBLE:g} of its weights, too little to change an answer; raise learning_rate {rate:g}"
            ]
        return list(_warn_of_idle(model, changed))


def _find_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def _hash(weight: Tensor) -> int:
    return int(torch.hash_tensor(weight.detach()).view(torch.int64))  # uint64 has no conversion to int


def _find_effective(model: nn.Module, changed: set[str]) -> set[str]:
    """The changed weights that affect the output: A has no effect while B is zero, as the layer adds B A x."""
    zeros = {name for name, weight in _find_weights(model) if ".lora_B." in name and not weight.detach().any()}
    return {name for name in changed - zeros if name.replace(".lora_A.", ".lora_B.") not in zeros}


def _explain(trainer: Any, steps: int, learning_steps: int) -> str:
    rate = trainer.args.learning_rate
    if trainer.args.fp16:
        remedy = "in fp16 a step whose gradient overflows is passed over: set mixed_precision to bf16 or none"
    elif steps and not learning_steps:
        remedy = "the gradient was 0 in each step: adapt other layers with lora_target_modules, or look at the rows"
    else:
        remedy = f"set max_steps or num_epochs for more steps, or raise learning_rate {rate:g}"
    return f"training has changed nothing: after {steps} optimizer steps the model answers as before; {remedy}"


def _warn_of_idle(model: nn.Module, changed: set[str]) -> list[str]:
    """Adapted layers that learned nothing while others did."""
    if not isinstance(model, PeftModel):
        return []
    layers = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    alive = {name.partition(".lora_")[0] for name in changed if ".lora_B." in name or ".lora_embedding_B" in name}
    idle = [name for name in layers if name not in alive]
    if not idle or not alive:
        return []
    first = idle[0].removeprefix("base_model.model.")
    return [
        f"{len(idle)} of {len(layers)} adapted layers have learned nothing, {first} for one: no row gave them a "
        "gradient; name the layers to adapt with lora_target_modules"
    ]
