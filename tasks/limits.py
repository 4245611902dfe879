"""The limits on reading the input of a job or a plan, from the settings and the machine's memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from jobs.keeper import NOTE
from jobs.settings import Settings
from sft.confinement import Limits, confined

SHARE, FREE_SHARE = 0.5, 0.8
LEAST_BYTES = 512 * 2**20  # a tokenizer needs this much


def find_limits(settings: Settings) -> Limits:
    """The limits for reading rows, tokenizer and template."""
    memory = settings.input_memory_bytes
    if memory is None:
        here = psutil.virtual_memory()
        memory = max(LEAST_BYTES, int(min(SHARE * here.total, FREE_SHARE * here.available)))
    return Limits(memory, settings.input_step_seconds, settings.input_seconds)


@contextmanager
def reading_input(settings: Settings, dataset: str) -> Iterator[None]:
    """Apply the limits to reading inside the block. Raises ResourceLimit, or ends the process."""
    with confined(find_limits(settings), find_note(), f"dataset_name {dataset}: to read it"):
        yield


@contextmanager
def writing_prompt(settings: Settings, model: str) -> Iterator[None]:
    """Apply the limits to a model's tokenizer and chat template. Raises ResourceLimit, or ends the process."""
    with confined(find_limits(settings), find_note(), f"model {model}: reading its tokenizer and chat template"):
        yield


@contextmanager
def building_model(settings: Settings, is_plan: bool = False) -> Iterator[None]:
    """Apply the time limit to steps inside the block, such as matching patterns against the model's layers.

    A job's model may take as much memory as its weights need; a plan, which loads a few layers, only what is free (on
    CUDA there is no limit). Raises ResourceLimit, or ends the process, as `reading_input` does.
    """
    memory = None
    if is_plan and not _has_cuda():
        memory = max(LEAST_BYTES, int(FREE_SHARE * psutil.virtual_memory().available))
    default = "base_model: to plan for it" if is_plan else ""
    with confined(Limits(memory, settings.input_step_seconds, None), find_note(), default):
        yield


def find_note() -> int | None:
    note = os.environ.get(NOTE)
    return int(note) if note else None


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())
