"""Inspects the device of the machine that makes the plan."""

from typing import Any, NamedTuple

from sft.config import SFTConfig
from sft.models.dtype_record import name_cpu

GEMM_SIZE = 1024
GEMM_REPEATS = 4


class Device(NamedTuple):
    """The device and dtype that the job would compute with."""

    name: str
    kind: str  # cpu or cuda
    dtype: str
    bytes_each: int  # per number of dtype
    total_bytes: int
    free_bytes: int
    flops_per_second: float  # measured for a matrix product in dtype


def inspect_device(config: SFTConfig) -> Device:
    """Find the device, its free memory and its matmul speed.

    Raises:
        InvalidConfig: the device does not support mixed_precision or QLoRA.
    """
    import psutil
    import torch

    from sft.models.loading import choose_dtype, inspect_machine, time_product
    from sft.training.arguments import measure_free_memory

    dtype = choose_dtype(config.mixed_precision, inspect_machine())
    if torch.cuda.is_available():
        name, total = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    else:
        name, total = f"{name_cpu()}, {torch.get_num_threads()} threads", psutil.virtual_memory().total
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Device(
        name=name,
        kind=device,
        dtype=str(dtype).removeprefix("torch."),
        bytes_each=dtype.itemsize,
        total_bytes=int(total),
        free_bytes=measure_free_memory(),
        flops_per_second=2 * GEMM_SIZE**3 / time_product(dtype, GEMM_SIZE, GEMM_REPEATS, device),
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
    }
