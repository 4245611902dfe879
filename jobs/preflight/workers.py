"""Check devices, writable folders and packages of this machine's workers."""

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from jobs.folders import output_folder
from jobs.preflight.context import CheckContext
from jobs.preflight.findings import Finding
from jobs.spec import JobSpec
from sft.errors import InvalidConfig
from sft.models.placement import check_placement

BITSANDBYTES = re.compile(r"^(paged_|ademamix|lion_|rmsprop_bnb|adamw_(bnb_)?8bit)")


def check_devices(spec: JobSpec, context: CheckContext) -> Iterator[Finding]:
    """Find options that need devices or packages which the workers lack."""
    if not context.workers_are_here:
        return
    config, gpus = spec.config, context.gpus_per_job if context.gpus else 0
    if config.use_qlora and not gpus:
        yield _finding("use_qlora", "needs a CUDA device and no worker has one; set it to false for plain LoRA")
    elif config.use_qlora and importlib.util.find_spec("bitsandbytes") is None:
        yield _finding(
            "use_qlora",
            "needs the package bitsandbytes; install Tuneyard's extra `cuda`, or set it to false for plain LoRA",
        )
    if config.mixed_precision == "fp16" and not gpus:
        yield _finding("mixed_precision", "fp16 needs a CUDA device and no worker has one; use bf16, none or auto")
    if BITSANDBYTES.search(config.optimizer_type or "") and importlib.util.find_spec("bitsandbytes") is None:
        yield _finding(
            "optimizer_type",
            f"{config.optimizer_type!r} needs the package bitsandbytes; install Tuneyard's extra `cuda`, or name "
            "another one, such as adamw_torch",
        )
    try:
        check_placement(config.device_map, config.num_devices, gpus)
    except InvalidConfig as error:
        yield _finding("device_map", str(error).removeprefix("device_map "))
    cores = os.cpu_count() or 1
    if gpus and config.num_devices > gpus:
        yield _finding(
            "num_devices",
            f"is {config.num_devices}, but a worker has {gpus} GPU{'s' if gpus > 1 else ''}; set it to {gpus} at most, "
            f"or TUNEYARD_WORKERS to the machine's {len(context.gpus)} divided by {config.num_devices}",
        )
    elif not gpus and config.num_devices > cores:
        yield _finding(
            "num_devices", f"is {config.num_devices}, but there is no GPU and the CPU has {cores} cores; set it to 1"
        )


def check_output(spec: JobSpec, context: CheckContext) -> Iterator[Finding]:
    """Find a folder for results or checkpoints that is outside the allowed roots or not writable."""
    for field in ("output_dir", "checkpoint_dir"):
        given = getattr(spec.config, field)
        if given is None and field == "checkpoint_dir":
            continue
        try:
            folder = output_folder(context.settings, given)
        except InvalidConfig as error:
            yield _finding(field, str(error).removeprefix("output_dir "))
            continue
        if not context.workers_are_here:
            continue
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            yield _finding(field, f"{given!r} can't be created: {nearest} is a file; name another folder")
        elif not os.access(nearest, os.W_OK | os.X_OK) or _is_read_only(nearest):
            yield _finding(field, f"{given!r} is not writable: {nearest} is read-only here; name another folder")


def check_tracking(spec: JobSpec, context: CheckContext) -> Iterator[Finding]:
    """Find a tracking backend whose package is not installed."""
    if spec.tracking_backend == "wandb" and context.workers_are_here and importlib.util.find_spec("wandb") is None:
        yield _finding("tracking_backend", "wandb needs the package wandb; install it, or use mlflow")


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _finding(field: str, text: str) -> Finding:
    return Finding(InvalidConfig, field, text)
