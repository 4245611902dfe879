"""The GPUs of this machine, and MIG slices of them, shared out among its workers; needs no torch."""

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SLICE = "MIG-"
_GPU = re.compile(r"GPU (\d+): .*?(?:\(UUID: (GPU-[^)]+)\))?\s*$")
_SLICE = re.compile(r"\s+MIG .*\(UUID:\s*(MIG-[^)]+)\)")


@dataclass(frozen=True)
class ListedGpu:
    """A line of `nvidia-smi -L` with the slices below it: a GPU that is split into slices is used by them alone."""

    index: str
    uuid: str | None
    slices: list[str]

    def is_named(self, name: str) -> bool:
        """Whether CUDA_VISIBLE_DEVICES means this GPU by `name`: its index, or the beginning of its UUID."""
        return name == self.index or (name.startswith("GPU-") and (self.uuid or "").startswith(name))


def visible_gpus(environment: Mapping[str, str], list_gpus: Callable[[], str]) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, one per GPU or MIG slice that this process may use.

    Args:
        list_gpus: returns the output of `nvidia-smi -L`, empty without a driver.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    names = [] if chosen is None else [name.strip() for name in chosen.split(",") if name.strip()]
    names = names[: names.index("-1")] if "-1" in names else names  # as CUDA reads it
    if chosen is not None and not names:
        return []
    gpus = _parse(list_gpus())
    if chosen is None:
        has_slices = any(gpu.slices for gpu in gpus)  # CUDA then counts differently from nvidia-smi
        whole = {gpu.index: gpu.uuid if has_slices and gpu.uuid else gpu.index for gpu in gpus}
        return [name for gpu in gpus for name in gpu.slices or [whole[gpu.index]]]
    split = {name: gpu.slices for name in names for gpu in gpus if gpu.slices and gpu.is_named(name)}
    return [part for name in names for part in split.get(name, [name])]


def share_gpus(gpus: list[str], number: int, workers: int) -> list[str]:
    """The GPUs of worker `number` (from 0): an equal share; with too few GPUs one that is shared with other workers.

    Whole GPUs, or one MIG slice: CUDA shows a process no more than one of these.
    """
    share = gpus[number::workers] or gpus[number % len(gpus) :][:1] if gpus else []
    return [name for name in share if not name.startswith(SLICE)] or share[:1]


def nvidia_smi() -> str:
    """The output of `nvidia-smi -L`; empty if it is missing or fails."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _parse(listing: str) -> list[ListedGpu]:
    gpus: list[ListedGpu] = []
    for line in listing.splitlines():
        if found := _GPU.match(line):
            gpus.append(ListedGpu(found[1], found[2], []))
        elif (found := _SLICE.match(line)) and gpus:
            gpus[-1].slices.append(found[1])
    return gpus
