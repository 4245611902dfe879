"""Which GPU a job trains on: `device_map`. Needs no torch, so that submissions are checked too."""

import os

from sft.errors import InvalidConfig

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")  # over all visible devices


def check_placement(place: str | None, num_devices: int, gpus: int) -> list[str]:
    """Check that `device_map` names the job's own device: a job trains on one device, or a model copy on each.

    Returns warnings. Raises InvalidConfig.
    """
    if place is None:
        return []
    if not gpus:
        return [f"device_map {place!r} has no effect: there is no GPU, and the model is on the CPU"]
    if num_devices > 1:
        raise InvalidConfig(
            f"device_map {place!r} does not go with num_devices {num_devices}, which gives each GPU a copy of "
            "the model; unset device_map"
        )
    if place in SPREADING:
        if gpus > 1:
            raise InvalidConfig(
                f"device_map {place!r} would spread the model over the {gpus} GPUs of this worker, and a job "
                "trains on one; unset device_map (num_devices trains on several, with a copy on each)"
            )
        return []
    number = _find_number(place)
    if not number.isdecimal():
        raise InvalidConfig(
            f"device_map {place!r} is not a GPU of this machine, and a job trains on one; unset device_map"
        )
    if int(number) >= gpus:
        raise InvalidConfig(
            f"device_map {place!r} is not there: this worker has {gpus} GPU(s), counted from 0; unset device_map"
        )
    return []


def choose_gpu(place: str | None) -> int:
    """The number of the GPU that this process trains on, from 0 among those it sees; `check_placement` was passed.

    Over one GPU the model is not spread either: what does not fit would be left on the CPU, where it can't be trained.
    """
    if place is None or place in SPREADING:
        return int(os.environ.get("LOCAL_RANK", 0))
    return int(_find_number(place))


def _find_number(place: str) -> str:
    return place.removeprefix("cuda:").removeprefix("cuda") or "0"
