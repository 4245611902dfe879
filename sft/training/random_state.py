"""Saves and restores the state of all random number generators that training uses."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class RandomState(NamedTuple):
    """Generator states of Python, NumPy and torch, on the CPU and on each CUDA device this process uses."""

    python: tuple[Any, ...]
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def capture(cls) -> "RandomState":
        """Capture the present state."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Set all generators to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Restore the random state after the block."""
    state = RandomState.capture()
    try:
        yield
    finally:
        state.restore()
