"""Compares what a job requires of the machine with what it has, before anything is loaded."""

import importlib.util
import os
from typing import NamedTuple

from sft.config import SFTConfig
from sft.errors import InvalidConfig
from sft.models.placement import check_placement, choose_gpu

FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # modules
INSTALL_CUDA = "install it with `pip install -c constraints.txt -e '.[cuda]'`"


class Hardware(NamedTuple):
    """GPUs, CPU cores and installed packages that matter to a job."""

    gpus: int  # visible to this process
    cores: int
    has_bitsandbytes: bool
    flash_attention: tuple[str, ...] = ()  # values of attn_implementation whose package is installed


def inspect_hardware() -> Hardware:
    """Inspect the machine this runs on."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    flash = tuple(name for name, module in FLASH_PACKAGES.items() if importlib.util.find_spec(module) is not None)
    return Hardware(gpus, os.cpu_count() or 1, importlib.util.find_spec("bitsandbytes") is not None, flash)


def check_hardware(config: SFTConfig, hardware: Hardware) -> list[str]:
    """Raise InvalidConfig for devices, a placement or a method that this machine lacks. Returns warnings."""
    check_devices(config.num_devices, hardware.gpus, hardware.cores)
    if config.use_qlora:
        check_qlora(hardware)
    _check_attention(config, hardware)
    return check_placement(config.device_map, config.num_devices, hardware.gpus)


def check_devices(num_devices: int, gpus: int, cores: int) -> None:
    """Raise InvalidConfig if there are fewer devices than the job asks for.

    Without CUDA the processes share the CPU's cores: useful to rehearse a job for several GPUs, but not faster.
    """
    if gpus and num_devices > gpus:
        raise InvalidConfig(
            f"num_devices is {num_devices}, but this job's worker has {gpus} GPU{'s' if gpus > 1 else ''}; "
            f"set num_devices to {gpus} at most, or TUNEYARD_WORKERS to the machine's GPUs divided by {num_devices}, "
            "so that each worker has enough of them (outside of a worker: CUDA_VISIBLE_DEVICES)"
        )
    if not gpus and num_devices > cores and num_devices > 1:
        raise InvalidConfig(
            f"num_devices is {num_devices}, but there is no GPU and the CPU has {cores} cores; set num_devices to 1"
        )


def check_qlora(hardware: Hardware) -> None:
    """Raise InvalidConfig if weights can't be loaded in 4 bits here."""
    if not hardware.gpus:
        raise InvalidConfig("use_qlora needs a CUDA device and there is none; set use_qlora to false for plain LoRA")
    if not hardware.has_bitsandbytes:
        raise InvalidConfig(
            f"use_qlora needs the package bitsandbytes; {INSTALL_CUDA}, or set use_qlora to false for plain LoRA"
        )


def _check_attention(config: SFTConfig, hardware: Hardware) -> None:
    """Raise InvalidConfig if the attention kernels asked for are not here."""
    name = config.attn_implementation
    if name != "varlen" and name not in FLASH_PACKAGES:
        return
    if not hardware.gpus:
        raise InvalidConfig(f"attn_implementation {name} needs a CUDA device and there is none; set it to auto")
    if name in FLASH_PACKAGES and name not in hardware.flash_attention:
        raise InvalidConfig(
            f"attn_implementation {name} needs the package {FLASH_PACKAGES[name]}, which is not installed; install it "
            "(https://github.com/Dao-AILab/flash-attention), or set attn_implementation to auto"
        )
    if config.mixed_precision == "none" and name in FLASH_PACKAGES:
        raise InvalidConfig(
            f"attn_implementation {name} computes in bf16 or fp16, and mixed_precision is none; set mixed_precision to "
            "auto, or attn_implementation to sdpa"
        )


def use_gpu(place: str | None) -> None:
    """Make the job's GPU this process's current one; does nothing without GPUs."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(choose_gpu(place))
