"""The dtype of a run, chosen once: a run that goes on from a checkpoint keeps what it began with."""

from pathlib import Path

import torch

from sft.checkpoints import read_precision
from sft.config import SFTConfig
from sft.models import choose_dtype, inspect_machine


def settle_dtype(config: SFTConfig, checkpoint_dir: Path) -> torch.dtype:
    """The dtype to compute in. `auto` is what the newest checkpoint was trained in, else what this machine does best.

    Where two dtypes are about as fast, a machine measured again might choose the other one, and the resumed run would
    end with other weights.

    Raises:
        InvalidConfig: the machine can't compute in it.
    """
    precision: str = config.mixed_precision
    if precision == "auto":
        precision = read_precision(checkpoint_dir) or precision
    return choose_dtype(precision, inspect_machine())
