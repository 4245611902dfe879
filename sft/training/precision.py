"""The dtype of a run, chosen once: a run that goes on from a checkpoint keeps what it began with."""

import json
from pathlib import Path

import torch

from sft.checkpoints.folders import PRECISION, read_precision
from sft.config import SFTConfig
from sft.models.dtype_record import measure_once
from sft.models.loading import BF16_GAIN, DTYPES, choose_dtype, inspect_machine, name_precision


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


def fix_precision(
    config: SFTConfig,
    record_dir: Path,
    chosen: str | None = None,
    output_dir: Path | None = None,
    checkpoint_dir: Path | None = None,
) -> SFTConfig:
    """The configuration with what its `mixed_precision: auto` comes to; a job and its plan ask with the same record.

    Args:
        record_dir: folder where what was measured on this machine is kept.
        chosen: what `auto` is to be on this machine, instead of what is measured.
        output_dir: of a job, which keeps it there for its later attempts.
        checkpoint_dir: of a job; what its newest checkpoint was trained in comes first.

    Raises:
        InvalidConfig: the machine can't compute in it.
    """
    if config.mixed_precision != "auto":
        return config
    kept = (checkpoint_dir and read_precision(checkpoint_dir)) or (output_dir and _read(output_dir))
    precision = kept or name_precision(_choose(record_dir, chosen))
    if output_dir and not kept:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / PRECISION).write_text(json.dumps({"mixed_precision": precision}), encoding="utf-8")
    return config.model_copy(update={"mixed_precision": precision})


def _choose(record_dir: Path, chosen: str | None) -> torch.dtype:
    machine = inspect_machine()
    if chosen or machine.has_cuda:
        return choose_dtype(chosen or "auto", machine)

    def measure() -> tuple[str, float, float]:
        seconds = machine.measure_gemm()
        return "bf16" if seconds[1] < BF16_GAIN * seconds[0] else "none", *seconds

    return choose_dtype(measure_once(record_dir, measure).mixed_precision, machine)


def _read(output_dir: Path) -> str | None:
    try:
        found = json.loads((output_dir / PRECISION).read_text(encoding="utf-8"))["mixed_precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found in DTYPES else None
