"""Describes the device that a plan is for: the one of this machine, or one that is named and need not be here."""

from pathlib import Path
from typing import Any, NamedTuple

from sft.config import SFTConfig
from sft.models.dtype_record import name_cpu
from sft.planning.devices import Card
from sft.planning.gpus import Gpu, inspect_gpu

GEMM_REPEATS = 4
GEMM_SIZE = 1024
TERA = 1e12


class Device(NamedTuple):
    """The device and dtype that the job would compute with."""

    name: str
    kind: str  # cpu or cuda
    dtype: str
    bytes_each: int  # per number of dtype
    total_bytes: int
    free_bytes: int
    flops_per_second: float  # of a matrix product in dtype: measured on a CPU, from the table for a GPU
    capability: tuple[int, int] | None = None  # compute capability of a GPU
    is_here: bool = True  # this machine's; nothing can be tried on another one

    def find_usable_bytes(self, held_bytes: int) -> int:
        """Memory that a job can have when its turn comes: a GPU's is its own then, main memory has other users too.

        Args:
            held_bytes: main memory that jobs hold now.
        """
        return self.total_bytes if self.kind == "cuda" else min(self.free_bytes + held_bytes, self.total_bytes)


def inspect_device(config: SFTConfig) -> Device:
    """Find this machine's device, its free memory and its matmul speed. A GPU is asked for nothing: jobs may use it.

    Raises:
        InvalidConfig: the device does not support mixed_precision or QLoRA.
    """
    import psutil
    import torch

    from sft.models.loading import DtypeSupport, choose_dtype, measure_gemm, time_product

    if torch.cuda.is_available():
        gpu = inspect_gpu() or _ask_cuda()
        return describe_card(gpu.name, gpu.describe(), config)._replace(free_bytes=gpu.free_bytes, is_here=True)
    dtype = choose_dtype(config.mixed_precision, DtypeSupport(False, False, measure_gemm))
    memory = psutil.virtual_memory()
    return Device(
        name=f"{name_cpu()}, {torch.get_num_threads()} threads",
        kind="cpu",
        dtype=str(dtype).removeprefix("torch."),
        bytes_each=dtype.itemsize,
        total_bytes=int(memory.total),
        free_bytes=int(memory.available),
        flops_per_second=2 * GEMM_SIZE**3 / time_product(dtype, GEMM_SIZE, GEMM_REPEATS),
    )


def settle_precision(config: SFTConfig, record_dir: Path, chosen: str | None = None) -> SFTConfig:
    """Replace `mixed_precision: auto` as a job does (`fix_precision`); for a GPU `inspect_device` knows its best dtype.

    Args:
        record_dir: folder with the measurements of this machine.
        chosen: the administrator's choice for `auto` on this machine.
    """
    import torch

    from sft.training.precision import fix_precision

    if config.mixed_precision == "auto" and torch.cuda.is_available():
        return config.model_copy(update={"mixed_precision": chosen or "auto"})
    return fix_precision(config, record_dir, chosen)


def _ask_cuda() -> Gpu:
    """The facts as CUDA has them, where the driver's tool is missing or shows the GPU that a MIG slice is part of.

    Reading them allocates nothing there; the free memory could not be read so, and counts as the whole.
    """
    import torch

    found = torch.cuda.get_device_properties(0)
    return Gpu(found.name, (found.major, found.minor), found.total_memory, found.total_memory)


def describe_card(name: str, card: Card, config: SFTConfig) -> Device:
    """The device of this name, with all of its memory free. Raises InvalidConfig for a dtype that it lacks."""
    from sft.models.loading import DtypeSupport, choose_dtype, measure_gemm

    dtype = choose_dtype(config.mixed_precision, DtypeSupport(True, card.bf16, measure_gemm))
    memory = int(card.memory_gib * 2**30)
    return Device(
        name=name,
        kind="cuda",
        dtype=str(dtype).removeprefix("torch."),
        bytes_each=dtype.itemsize,
        total_bytes=memory,
        free_bytes=memory,
        flops_per_second=card.teraflops * TERA * 2 / dtype.itemsize,
        capability=card.capability,
        is_here=False,
    )


def describe_device(device: Device) -> dict[str, Any]:
    """The response's `device`."""
    return {
        "name": device.name,
        "kind": device.kind,
        "dtype": device.dtype,
        "memory_bytes": device.total_bytes,
        "free_memory_bytes": device.free_bytes,
        "gflops": round(device.flops_per_second / 1e9, 1),
        "is_here": device.is_here,
    }
