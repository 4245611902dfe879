"""Counts the bytes of the tensors of a fake step, and finds the shapes of results that were found before quickly."""

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sft.training.stand_ins import count_workspace

CPU = torch.device("cpu")


class Ledger(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here
    """Makes every new tensor a fake one and counts the bytes of their storages.

    Tensors that exist already, the batch, stay real, and so does what is computed from them alone: the model reads
    positions and bounds of documents as numbers.

    `FakeTensorMode` remembers results too, but takes 100 us and more to look one up, which is most of a plan's time.
    Here the results of an operation with the same arguments are remembered by the shapes, strides, offsets and dtypes.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.alive = 0
        self._mode = mode
        self._peak = 0
        self._known: dict[int, int] = {}  # storage's address: its number
        self._count = 0
        self._results: dict[Any, _Result] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and switching that off takes time at each operation

    def take_peak(self) -> int:
        """Most bytes alive at one time since the last call."""
        peak, self._peak = self._peak, self.alive
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, on fake tensors if any of its tensors is fake or if it has none."""
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        kwargs = kwargs or {}
        key = describe_call(func, args, kwargs)
        known = None if key is None else self._results.get(key)
        if known is not None:
            out = self._remake(known, args)
        else:
            tensors = [leaf for leaf in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(leaf, Tensor)]
            real = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
            if tensors and len(real) == len(tensors):
                with unset_fake_temporarily():
                    return func(*args, **kwargs)
            if func in _INDEXING:
                args = (args[0], list(_list_positions(args[1])), *args[2:])
            out = func(*args, **kwargs)
            if key is not None and (result := describe_result(func, args, kwargs, out)) is not None:
                self._results[key] = result
        workspace = count_workspace(func, args)
        for leaf in (out,) if isinstance(out, Tensor) else pytree.tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                self._note(leaf.untyped_storage())
        self._peak = max(self._peak, self.alive + workspace)
        return out

    def _remake(self, known: "_Result", args: Any) -> FakeTensor:
        """The result again: the argument itself, a view of it, or a new tensor."""
        if known.shape is None:
            out: FakeTensor = args[0]
            return out
        with in_kernel_invocation_manager(self._mode):
            made = torch.empty_strided(known.shape, known.stride, dtype=known.dtype, device="meta")
            if known.is_view:
                made.set_(args[0].untyped_storage(), known.offset, known.shape, known.stride)
        return FakeTensor(self._mode, made, CPU)

    def _note(self, storage: Any) -> None:
        address = storage._cdata
        if address in self._known:
            return
        number, size = self._count, storage.nbytes()
        self._count += 1
        self._known[address] = number
        self.alive += size
        self._peak = max(self._peak, self.alive)
        weakref.finalize(storage, self._forget, address, number, size)

    def _forget(self, address: int, number: int, size: int) -> None:
        if self._known.get(address) == number:
            del self._known[address]
        self.alive -= size


class _Result(NamedTuple):
    """A tensor that an operation gave; with `shape` None it is the first argument, changed in place."""

    shape: tuple[int, ...] | None
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: Any = None
    is_view: bool = False  # of the first argument


def describe_call(func: Any, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
    """All that the shapes of a call's results depend on; None if that can't be told."""
    parts: list[Any] = [func]
    if not (_describe(parts, args) and _describe(parts, kwargs.items())):
        return None
    try:
        hash(key := tuple(parts))
    except TypeError:
        return None
    return key


def _describe(parts: list[Any], values: Any) -> bool:
    for value in values:
        if isinstance(value, FakeTensor):
            parts += (value.dtype, value.shape, value.stride(), value.storage_offset())
        elif isinstance(value, Tensor):
            return False
        elif isinstance(value, list | tuple):
            parts.append(len(value))
            if not _describe(parts, value):
                return False
        else:  # with its type, as 1 and 1.0 give other dtypes
            parts += (type(value), value)
    return True


def describe_result(func: Any, args: Any, kwargs: Any, out: Any) -> _Result | None:
    """How to make this result again; None where that takes more than its shape.

    It has to be one tensor on a storage of its own, the first argument, or a view of it.
    """
    if not isinstance(func, torch._ops.OpOverload) or torch.Tag.inplace_view in func.tags:
        return None
    if not isinstance(out, FakeTensor) or out.constant is not None or out.layout != torch.strided:
        return None
    if args and out is args[0]:
        return _Result(None)
    if out.fake_device != CPU or out.is_conj() or out.is_neg():
        return None
    storage = out.untyped_storage()
    shared = [leaf for leaf in pytree.arg_tree_leaves(*args, **kwargs) if _is_on(leaf, storage)]
    is_view = bool(shared)
    if is_view and not (len(shared) == 1 and shared[0] is args[0]):
        return None
    if not is_view and (out.storage_offset() or storage.nbytes() != _measure_extent(out)):
        return None
    return _Result(tuple(out.shape), out.stride(), out.storage_offset(), out.dtype, is_view)


def _is_on(value: Any, storage: Any) -> bool:
    return isinstance(value, Tensor) and value.untyped_storage()._cdata == storage._cdata


def _measure_extent(tensor: FakeTensor) -> int:
    """Bytes of the storage that `empty_strided` makes for a tensor of this shape."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.element_size() * (1 + sum((size - 1) * step for size, step in steps)))


_INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


def _list_positions(indices: Any) -> Iterator[Any]:
    """Indices with every mask replaced by the positions of its true values: fake tensors have no values to count."""
    for index in indices:
        if isinstance(index, Tensor) and not isinstance(index, FakeTensor) and index.dtype == torch.bool:
            with unset_fake_temporarily():
                yield from index.nonzero(as_tuple=True)
        else:
            yield index
