"""Which rows a batch holds, filled up to a budget of tokens, and which rows they were in the data file."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class TokenBatches(Sampler[list[int]]):  # type: ignore[misc]  # torch is untyped here
    """Batches of row indices, each of at most `max_tokens` tokens; a longer row is a batch of its own.

    What is put together is decided once, by the seed; each epoch has the batches in another order. So the number of
    batches is the same in every epoch, and a resumed run sees the batches an uninterrupted one sees.

    Args:
        lengths: tokens of each row.
        padded: whether the rows of a batch are padded to the longest: then rows of like length go together and
            the padding counts.
        seed: None keeps the rows in their order, for evaluation.
        multiple_of: the number of batches is made a multiple of this (processes that train side by side) by
            splitting batches, and by repeating some when every batch has one row.
    """

    def __init__(
        self, lengths: Sequence[int], max_tokens: int, padded: bool, seed: int | None = None, multiple_of: int = 1
    ) -> None:
        self.seed = seed
        self.epoch = 0
        self.sampler = self  # where accelerate looks for `set_epoch` below the samplers it wraps this one in
        order = list(range(len(lengths)))
        if seed is not None:
            order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
        if padded:
            order.sort(key=lambda index: -lengths[index])  # stable: rows of one length stay shuffled
        self.batches = _fill(order, lengths, max_tokens, padded)
        _round_up(self.batches, multiple_of)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            yield from self.batches
            return
        generator = torch.Generator().manual_seed(self.seed + 1 + self.epoch)
        for index in torch.randperm(len(self.batches), generator=generator).tolist():
            yield self.batches[index]

    def set_epoch(self, epoch: int) -> None:
        """The order of the batches is that of this epoch, from 0."""
        self.epoch = epoch


class LengthGroups(Sampler[int]):  # type: ignore[misc]  # torch is untyped here
    """Rows of like length side by side, in an order that the seed and the epoch decide; transformers' grouping.

    Args:
        lengths: tokens of each row.
        rows: in a group; the longest row of all is in the first.
    """

    def __init__(self, lengths: Sequence[int], rows: int, seed: int) -> None:
        self.lengths, self.rows, self.seed, self.epoch = lengths, rows, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from get_length_grouped_indices(self.lengths, self.rows, generator=generator)

    def set_epoch(self, epoch: int) -> None:
        """The order is that of this epoch, from 0."""
        self.epoch = epoch


class SharedBatches(Sampler[list[int]]):  # type: ignore[misc]  # torch is untyped here
    """Batches of `batch_size` rows for `processes` that take them in turn, as many each, with no row twice.

    The rows that are left at the end of an epoch are dealt out in equal parts, where accelerate's own sharding would
    fill up with rows from the beginning. Only when there are fewer of them than processes some are repeated.

    Args:
        sampler: gives the rows of an epoch in order; has `set_epoch`.
    """

    def __init__(self, sampler: Any, batch_size: int, processes: int) -> None:
        self.sampler = sampler
        self.rows, self.processes = batch_size, processes

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.rows * self.processes)
        return (whole + (rest > 0)) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        whole = len(order) - len(order) % (self.rows * self.processes)
        for start in range(0, whole, self.rows):
            yield order[start : start + self.rows]
        rest = order[whole:]
        if rest:
            rest += (order * self.processes)[: max(0, self.processes - len(rest))]
            for process in range(self.processes):
                yield rest[process :: self.processes]

    def set_epoch(self, epoch: int) -> None:
        """The order is that of this epoch, from 0."""
        self.sampler.set_epoch(epoch)


def _fill(order: list[int], lengths: Sequence[int], max_tokens: int, padded: bool) -> list[list[int]]:
    batches: list[list[int]] = []
    size, longest = 0, 0
    for index in order:
        grown = (len(batches[-1]) + 1) * max(longest, lengths[index]) if batches and padded else size + lengths[index]
        if not batches or grown > max_tokens:
            batches.append([])
            longest, grown = 0, lengths[index]
        batches[-1].append(index)
        size, longest = grown, max(longest, lengths[index])
    return batches


def _round_up(batches: list[list[int]], multiple_of: int) -> None:
    while missing := -len(batches) % multiple_of:
        largest = max(batches, key=len)
        if len(largest) == 1:
            batches.extend(batches[:missing])
            continue
        half = len(largest) // 2
        batches.append(largest[half:])
        del largest[half:]


class NumberedCollator:
    """A collator whose batches also say in `rows` which rows of the data file they hold.

    Rows come with a number in `row`, packed ones with a list in `rows`; without either `rows` is empty.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of these examples."""
        batch = self.collate(examples)
        numbers = [example["rows"] if "rows" in example else [example.get("row")] for example in examples]
        return batch | {"rows": [number for group in numbers for number in group if number is not None]}
