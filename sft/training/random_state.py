"""The state of all random numbers a training run draws."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class RandomState(NamedTuple):
    """Python's, NumPy's and torch's, on the CPU and on each CUDA device this process uses."""

    python: tuple[Any, ...]
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def capture(cls) -> "RandomState":
        """The state now."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Go back to this state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """What is drawn within the block changes nothing of what is drawn after it."""
    state = RandomState.capture()
    try:
        yield
    finally:
        state.restore()
