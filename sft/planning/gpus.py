"""Facts of this machine's GPUs, from the driver: CUDA itself would take memory of a GPU that a job may need."""

import os
import re
import subprocess
from collections.abc import Callable
from typing import NamedTuple

from sft.planning.devices import CARDS, USUAL_TERAFLOPS, Card

FIELDS = "index,uuid,name,compute_cap,memory.total,memory.free"
QUERY = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
MIB = 2**20
MEMORY_IN_NAME = re.compile(r"(\d+)gb")


class Gpu(NamedTuple):
    """A GPU as the driver describes it."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    uuid: str = ""

    def describe(self) -> Card:
        """The GPU as a device of the table, with the speed of the one of this name; a usual speed for others."""
        major, minor = self.capability
        return Card(
            memory_gib=self.total_bytes / 2**30,
            teraflops=find_teraflops(self.name),
            bf16=major >= 8,
            compute_capability=major + minor / 10,
        )


def inspect_gpu(query: Callable[[], str] | None = None) -> Gpu | None:
    """The GPU with the most free memory that this process may use; None if the driver does not say, as for MIG slices.

    Args:
        query: returns the output of QUERY; runs it if None.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    found = []
    for line in (query or _ask_driver)().splitlines():
        try:
            index, uuid, name, capability, total, free = (value.strip() for value in line.split(","))
            major, minor = (int(part) for part in capability.split("."))
            gpu = Gpu(name, (major, minor), int(total) * MIB, int(free) * MIB, uuid)
        except ValueError:  # "[N/A]"
            continue
        if names is None or any(one == index or (one.startswith("GPU-") and uuid.startswith(one)) for one in names):
            found.append(gpu)
    return max(found, key=lambda gpu: gpu.free_bytes, default=None)


def find_teraflops(name: str) -> float:
    """Speed of the device in the table that the driver calls by this name, such as `NVIDIA GeForce RTX 4090`."""
    words = re.sub(r"\brtx\s+(?=\d)", "rtx", name.lower())
    known = [
        (len(key), card.teraflops)
        for key, card in CARDS.items()
        if all(
            re.search(rf"(?<![a-z0-9]){part}(?![a-z0-9])", words)
            for part in key.split("-")
            if not MEMORY_IN_NAME.fullmatch(part)
        )
    ]
    return max(known, default=(0, USUAL_TERAFLOPS))[1]


def _ask_driver() -> str:
    try:
        done = subprocess.run(QUERY, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
