"""Checks that an optimizer works on this machine by taking a step with it before the model is loaded."""

from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.training_args import OptimizerNames

from sft.config import SFTConfig
from sft.errors import InvalidConfig, is_of_machine

LORAPLUS_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "adafactor", "sgd", "rmsprop")
SIDE = 64  # width of the trial layers; 64 x 64 = 4096 weights, from which bitsandbytes' blockwise states apply


def check_optimizer_name(config: SFTConfig) -> None:
    """Raise InvalidConfig if transformers does not know `optimizer_type`, or it does not go with LoRA+."""
    name = config.optimizer_type
    known = [known.value for known in OptimizerNames]
    if name is not None and name not in known:
        raise InvalidConfig(f"optimizer_type {name!r} is not known; known are {', '.join(known)}")
    if config.loraplus_lr_ratio and name not in (None, *LORAPLUS_OPTIMIZERS):
        raise InvalidConfig(
            f"loraplus_lr_ratio does not work with optimizer_type {name!r}; leave it unset or take one of "
            f"{', '.join(LORAPLUS_OPTIMIZERS)}"
        )


def check_optimizer(config: SFTConfig, may_use_gpu: bool = True) -> None:
    """Take a step on a tiny model with the optimizer named by `optimizer_type`, on the device of jobs.

    Without `may_use_gpu` a GPU is left alone: there the optimizer is only built, which fails if its package is missing.

    Raises:
        InvalidConfig: transformers does not know it, or it fails on this machine; the message says why.
    """
    check_optimizer_name(config)
    name = config.optimizer_type
    if name is None:
        return
    try:
        _take_step(name, may_use_gpu)
    except Exception as error:
        if is_of_machine(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidConfig(
            f"optimizer_type {name!r} does not work on this machine: {reason.rstrip('.')}. Leave it unset for the best "
            "one of the device, or name another one, such as adamw_torch"
        ) from error


def _take_step(name: str, may_use_gpu: bool) -> None:
    """Build the optimizer as the Trainer does, take a step, and load its state as a resumed run does."""
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu and may_use_gpu else "cpu")
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE)).to(device)
    arguments = TrainingArguments(
        output_dir=str(Path(gettempdir(), "unused")),  # nothing is written
        optim=name,
        use_cpu=device.type == "cpu",
        report_to="none",
    )
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    if is_optimizer_factory(kind):
        optimizer: Any = kind(model, **options)
    elif "params" in options or "model" in options or "optimizer_dict" in options:
        raise ValueError(f"it goes by layer and needs optim_target_modules ({', '.join(sorted(options))})")
    else:
        optimizer = kind([{"params": list(model.parameters()), "weight_decay": 0.01}], **options)
    if has_gpu and not may_use_gpu:  # it need not run on this machine's CPU
        return
    if callable(getattr(optimizer, "train", None)):  # schedule-free ones
        optimizer.train()
    model(torch.ones(2, SIDE, device=device)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
