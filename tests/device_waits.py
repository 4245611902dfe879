"""Counts where a GPU would have to be waited for, on CPU tensors: whatever needs a tensor's values in Python."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = (Tensor.tolist, Tensor.cpu, Tensor.numpy)  # `item`, `float`, `int` and `bool` are `_local_scalar_dense`
# Operations whose output's size depends on values.
SIZED_BY_VALUES = ("nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "_local_scalar_dense")


class WaitCounter:
    """`names` has one entry for each wait inside `counting`, but for what runs inside `pause`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.paused = 0

    def add(self, name: str) -> None:
        if not self.paused:
            self.names.append(name)

    @contextmanager
    def pause(self, is_paused: bool = True) -> Iterator[None]:
        before, self.paused = self.paused, int(is_paused)
        try:
            yield
        finally:
            self.paused = before

    @contextmanager
    def counting(self) -> Iterator[None]:
        with _Functions(self), _Operations(self):
            yield

    def wrap(self, function: Callable[..., Any], is_paused: bool) -> Callable[..., Any]:
        """The function with the counter paused, or running again, inside it."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.pause(is_paused):
                return function(*args, **kwargs)

        return run


class _Functions(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, counter: WaitCounter) -> None:
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.counter.add(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here
    def __init__(self, counter: WaitCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in SIZED_BY_VALUES or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.counter.add(name)
        if name in ("index", "index_put_", "index_put") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        ):
            self.counter.add(name)
        with self.counter.pause(bool(self.counter.paused) or name.startswith("torch_attn::")):
            return func(*args, **kwargs)  # a kernel on a GPU does not wait, its reference here may
