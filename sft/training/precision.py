"""The compute dtype of a run, chosen once: a run resumed from a checkpoint keeps its dtype."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers.utils import is_torch_tf32_available

from sft.checkpoints.folders import PRECISION, read_precision
from sft.config import SFTConfig
from sft.models.dtype_record import measure_once
from sft.models.loading import BF16_GAIN, DTYPES, choose_dtype, inspect_dtypes, name_precision


def settle_dtype(config: SFTConfig, checkpoint_dir: Path) -> torch.dtype:
    """Choose the compute dtype. `auto` means that of the newest checkpoint, else the fastest on this machine.

    When two dtypes are about equally fast, a second measurement could choose the other one, and the resumed run would
    end with different weights.

    Raises:
        InvalidConfig: the machine can't compute in it.
    """
    precision: str = config.mixed_precision
    if precision == "auto":
        precision = read_precision(checkpoint_dir) or precision
    return choose_dtype(precision, inspect_dtypes())


@contextmanager
def tf32_products(mixed_precision: str) -> Iterator[None]:
    """Multiply fp32 matrices in TF32 on CUDA inside the block, if fp32 is what the run computes in.

    TF32 rounds the inputs to 10 bits, as many as fp16 has, sums in fp32, and is several times as fast.
    `NVIDIA_TF32_OVERRIDE=0` in the environment forbids it. Not through TRL's arguments, which would change products on
    the CPU and those outside of training too: comparisons of layouts, merging.
    """
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    if mixed_precision == "none" and is_torch_tf32_available():
        products.fp32_precision = "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before


def fix_precision(
    config: SFTConfig,
    record_dir: Path,
    chosen: str | None = None,
    output_dir: Path | None = None,
    checkpoint_dir: Path | None = None,
) -> SFTConfig:
    """Replace `mixed_precision: auto` in the configuration; a job and its plan use the same record.

    The first of these decides: the newest checkpoint, an earlier attempt's choice, `chosen`, the measurement.

    Args:
        record_dir: folder with the measurements of this machine.
        chosen: the administrator's choice for `auto` on this machine, instead of a measurement.
        output_dir: of a job; the choice is stored there for later attempts.
        checkpoint_dir: of a job.

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
    support = inspect_dtypes()
    if chosen or support.has_cuda:
        return choose_dtype(chosen or "auto", support)

    def measure() -> tuple[str, float, float]:
        seconds = support.measure_gemm()  # of one product: fp32, bf16
        return "bf16" if seconds[1] < BF16_GAIN * seconds[0] else "none", *seconds

    return choose_dtype(measure_once(record_dir, measure).mixed_precision, support)


def _read(output_dir: Path) -> str | None:
    try:
        found = json.loads((output_dir / PRECISION).read_text(encoding="utf-8"))["mixed_precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found in DTYPES else None


def copy_adapters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy the trained weights of a model that has its adapter, in fp32, by name; none of a model without one."""
    if not isinstance(model, PeftModel):
        return {}
    trained = [(name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad]
    return {name: weight.to(torch.float32, copy=True) for name, weight in trained}


def keep_adapters_exact(model: torch.nn.Module, start: dict[str, torch.Tensor]) -> None:
    """Hold adapters in fp32, as they are loaded from a checkpoint: TRL casts those of a quantized model to bf16.

    fp16's gradient scaler does not support bf16, a resumed run would differ, and the adapter to start from would be
    rounded. `start` has the weights from before, by `copy_adapters`.
    """
    if not isinstance(model, PeftModel):
        return
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = start[name] if name in start else weight.data.float()
