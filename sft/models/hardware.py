"""Compares what a job requires of the machine with what it has, before anything is loaded."""

import importlib.util
import os
from typing import NamedTuple

from sft.config import SFTConfig
from sft.errors import InvalidConfig

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")  # over all visible devices
INSTALL_CUDA = "install it with `pip install -c constraints.txt -e '.[cuda]'`"


class Hardware(NamedTuple):
    """GPUs, CPU cores and installed packages that matter to a job."""

    gpus: int  # visible to this process
    cores: int
    has_bitsandbytes: bool


def inspect_hardware() -> Hardware:
    """Inspect the machine this runs on."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Hardware(gpus, os.cpu_count() or 1, importlib.util.find_spec("bitsandbytes") is not None)


def check_hardware(config: SFTConfig, hardware: Hardware) -> list[str]:
    """Raise InvalidConfig for devices, a placement or a method that this machine lacks. Returns warnings."""
    check_devices(config.num_devices, hardware.gpus, hardware.cores)
    if config.use_qlora:
        check_qlora(hardware)
    return _check_placement(config, hardware)


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


def _check_placement(config: SFTConfig, hardware: Hardware) -> list[str]:
    """Check that `device_map` names the job's own device: a job trains on one device, or a model copy on each."""
    place = config.device_map
    if place is None:
        return []
    if not hardware.gpus:
        return [f"device_map {place!r} has no effect: there is no GPU, and the model is on the CPU"]
    if config.num_devices > 1:
        raise InvalidConfig(
            f"device_map {place!r} does not go with num_devices {config.num_devices}, which gives each GPU a copy of "
            "the model; unset device_map"
        )
    if place in SPREADING:
        if hardware.gpus > 1:
            raise InvalidConfig(
                f"device_map {place!r} would spread the model over the {hardware.gpus} GPUs of this worker, and a job "
                "trains on one; unset device_map (num_devices trains on several, with a copy on each)"
            )
        return []
    number = place.removeprefix("cuda:").removeprefix("cuda") or "0"
    if not number.isdecimal():
        raise InvalidConfig(
            f"device_map {place!r} is not a GPU of this machine, and a job trains on one; unset device_map"
        )
    if int(number) >= hardware.gpus:
        raise InvalidConfig(
            f"device_map {place!r} is not there: this worker has {hardware.gpus} GPU(s), counted from 0; unset "
            "device_map"
        )
    return []
