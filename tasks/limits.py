"""What a job's or a plan's input may take, by the settings and by what this machine has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from jobs.keeper import NOTE
from jobs.settings import Settings
from sft.confinement import Limits, confined

SHARE, FREE_SHARE = 0.5, 0.8
LEAST_BYTES = 512 * 2**20  # less is not enough for a tokenizer, whatever is free


def find_limits(settings: Settings) -> Limits:
    """The limits for reading rows, tokenizer and template."""
    memory = settings.input_memory_bytes
    if memory is None:
        here = psutil.virtual_memory()
        memory = max(LEAST_BYTES, int(min(SHARE * here.total, FREE_SHARE * here.available)))
    return Limits(memory, settings.input_step_seconds, settings.input_seconds)


@contextmanager
def reading_input(settings: Settings, dataset: str) -> Iterator[None]:
    """Hold what is read within the block to the limits. Raises ResourceLimit, or ends the process: its parent knows."""
    with confined(find_limits(settings), _find_note(), f"dataset_name {dataset}: to read it"):
        yield


@contextmanager
def building_model(settings: Settings, is_plan: bool = False) -> Iterator[None]:
    """Hold the steps within the block to their time: patterns that are compared with the model's layers.

    A model takes as much memory as it has weights; a plan, which loads a few layers, what is free. Raises
    ResourceLimit, or ends the process, as `reading_input` does.
    """
    memory = None
    if is_plan and not _has_cuda():
        memory = max(LEAST_BYTES, int(FREE_SHARE * psutil.virtual_memory().available))
    default = "base_model: to plan for it" if is_plan else ""
    with confined(Limits(memory, settings.input_step_seconds, None), _find_note(), default):
        yield


def _find_note() -> int | None:
    note = os.environ.get(NOTE)
    return int(note) if note else None


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())
