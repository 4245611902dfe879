"""Describes the device that a plan is for: the one of this machine, or one that is named and need not be here."""

from typing import TYPE_CHECKING, Any, NamedTuple

from sft.config import SFTConfig
from sft.models.dtype_record import name_cpu
from sft.planning.devices import Card

if TYPE_CHECKING:
    from sft.training.layout import Layout

GEMM_REPEATS = 4
GEMM_SIZES = {"cpu": 1024, "cuda": 8192}  # a smaller product on a GPU takes the time of its launch
TERA = 1e12


class Device(NamedTuple):
    """The device and dtype that the job would compute with."""

    name: str
    kind: str  # cpu or cuda
    dtype: str
    bytes_each: int  # per number of dtype
    total_bytes: int
    free_bytes: int
    flops_per_second: float  # of a matrix product in dtype: measured, or from the table of devices
    layout: "Layout"  # how the trainer lays out the rows of most models here
    is_here: bool = True  # this machine's; nothing can be tried on another one


def inspect_device(config: SFTConfig) -> Device:
    """Find this machine's device, its free memory and its matmul speed.

    Raises:
        InvalidConfig: the device does not support mixed_precision or QLoRA.
    """
    import psutil
    import torch

    from sft.models.loading import choose_dtype, inspect_machine, time_product
    from sft.training.arguments import measure_free_memory

    machine = inspect_machine()
    dtype = choose_dtype(config.mixed_precision, machine)
    if torch.cuda.is_available():
        name, total = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    else:
        name, total = f"{name_cpu()}, {torch.get_num_threads()} threads", psutil.virtual_memory().total
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    size = GEMM_SIZES[kind]
    return Device(
        name=name,
        kind=kind,
        dtype=str(dtype).removeprefix("torch."),
        bytes_each=dtype.itemsize,
        total_bytes=int(total),
        free_bytes=measure_free_memory(),
        flops_per_second=2 * size**3 / time_product(dtype, size, GEMM_REPEATS, kind),
        layout=_expect_layout(kind, machine.has_cuda_bf16),
    )


def describe_card(name: str, card: Card, config: SFTConfig) -> Device:
    """The device of this name, with all of its memory free. Raises InvalidConfig for a dtype that it lacks."""
    from sft.models.loading import Machine, choose_dtype, measure_gemm

    dtype = choose_dtype(config.mixed_precision, Machine(True, card.bf16, measure_gemm))
    memory = int(card.memory_gib * 2**30)
    return Device(
        name=name,
        kind="cuda",
        dtype=str(dtype).removeprefix("torch."),
        bytes_each=dtype.itemsize,
        total_bytes=memory,
        free_bytes=memory,
        flops_per_second=card.teraflops * TERA * 2 / dtype.itemsize,
        layout=_expect_layout("cuda", card.bf16),
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


def _expect_layout(kind: str, has_bf16: bool) -> "Layout":
    return "documents" if kind == "cpu" else "trl"
