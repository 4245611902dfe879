"""Estimates a job's duration: from similar past jobs, else from a probe, else from the device's matmul speed."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from sft.config import SFTConfig
from sft.planning.machine import Device
from sft.planning.probe import Probe
from sft.planning.shape import ModelShape
from sft.planning.steps import Batches

EFFICIENCY = 0.35  # training's share of the matmul speed, as reached on CPUs; used when nothing was measured
# On a CPU, measured with SmolLM2-135M in bf16 and fp32: a whole model exceeds the caches that hold a probe's layers,
# and its first step touches new memory, which takes the time of so many steps more. Machines differ: a busy one with
# fast bf16 took 1.15 and a whole step, a quiet one in fp32 neither.
WHOLE_MODEL = 1.05
FIRST_STEPS = 0.5
STARTUP_SECONDS = 8.0  # from the job's start to its first batch: process, imports, model
FINISH_SECONDS = 4.0  # after training: saving and registering the adapter
LIKE_TOKENS = 1.5  # largest ratio between the tokens per step of this job and a similar one
RUNS_USED = 5
FORWARD_SHARE = 0.45  # of a LoRA step's time
FULL_FORWARD_SHARE = 1 / 3  # of a step's time if every weight has a gradient: forward 2, backward 4 FLOPs a weight


@dataclass(frozen=True)
class PastRun:
    """Measurements of a completed job with the same base model."""

    tokens_per_second: float
    tokens_per_step: float
    trainable_parameters: int
    dtype: str
    device: str  # cpu or cuda
    gradient_checkpointing: bool
    startup_seconds: float | None
    finish_seconds: float | None


def find_like(
    runs: list[PastRun], shape: ModelShape, device: Device, checkpointing: bool, tokens_per_step: float
) -> list[PastRun]:
    """Find the newest similar runs: same number of trained weights, dtype and device, and steps of similar size."""
    return [
        run
        for run in runs
        if run.trainable_parameters == shape.trainable
        and (run.dtype, run.device) == (device.dtype, device.kind)
        and run.gradient_checkpointing == checkpointing
        and 1 / LIKE_TOKENS <= run.tokens_per_step / tokens_per_step <= LIKE_TOKENS
    ][:RUNS_USED]


def plan_time(
    config: SFTConfig,
    shape: ModelShape,
    device: Device,
    batches: Batches,
    supervised_share: float,
    eval_tokens: int,
    checkpointing: bool,
    like: list[PastRun],
    runs: list[PastRun],
    probe: Probe | None,
) -> dict[str, Any]:
    """Plan the response's `time`.

    Args:
        supervised_share: share of the tokens that are supervised.
        eval_tokens: tokens of the held-out rows.
        like: similar past runs; `runs`: all runs of the same base model, for the time around training.
    """
    tokens = batches.trained * batches.mean_tokens  # per device
    forward_share = FORWARD_SHARE if config.use_lora else FULL_FORWARD_SHARE
    recompute = 1.0 + forward_share if checkpointing else 1.0  # the layers' forward pass a second time
    if like:
        basis = "past_runs"
        train = tokens / median(run.tokens_per_second for run in like)
        per_token = train / tokens / recompute  # seconds, of a step without recomputation
    elif probe is not None:
        basis = "probe"
        whole, first_steps = (WHOLE_MODEL, FIRST_STEPS) if device.kind == "cpu" else (1.0, 0.0)
        layers, head = whole * probe.predict_layers(shape.layers), whole * supervised_share * probe.head_seconds
        per_token = layers + head
        # step = tokens per step * (layers * recompute + head) + trained weights * optimizer, in seconds
        step = tokens * (layers * recompute + head) / batches.steps + shape.trainable * probe.optimizer_seconds
        train = (batches.steps + first_steps) * step
    else:
        basis = "matrix_product"
        passes = 4 if config.use_lora else 6  # FLOPs a weight: forward 2, input gradients 2, weight gradients 2
        speed = EFFICIENCY * device.flops_per_second / passes  # weights per second: a token uses each weight once
        layers, head = shape.matrix_parameters / speed, supervised_share * shape.hidden * shape.vocabulary / speed
        per_token = layers + head
        train = tokens * (layers * recompute + head)
    evaluations = 2 + (batches.steps // config.eval_steps if config.eval_steps else 0)  # 2: before and after training
    evaluate = evaluations * eval_tokens * per_token * forward_share / config.num_devices
    startup = _typical([run.startup_seconds for run in runs], STARTUP_SECONDS)
    finish = _typical([run.finish_seconds for run in runs], FINISH_SECONDS)
    return {
        "basis": basis,
        "past_runs": len(like),
        "train_seconds": round(train, 1),
        "evaluate_seconds": round(evaluate, 1),
        "startup_seconds": round(startup, 1),
        "finish_seconds": round(finish, 1),
        "total_seconds": round(train + evaluate + startup + finish, 1),
        "tokens_per_second": round(tokens * config.num_devices / train, 1),
        "seconds_per_step": round(train / batches.steps, 3),
    }


def _typical(seconds: list[float | None], default: float) -> float:
    known = [value for value in seconds if value is not None][:RUNS_USED]
    return median(known) if known else default
