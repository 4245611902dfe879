"""Batch samplers: batches filled up to a token budget, grouped by length, or dealt to several processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from sft.kernels.loss import POSITIONS, find_supervised_positions


class TokenBatches(Sampler[list[int]]):  # type: ignore[misc]  # torch is untyped here
    """Batches of row indices, each of at most `max_tokens` tokens; a longer row is a batch of its own.

    The seed decides once which rows share a batch; each epoch shuffles the batches. So every epoch has the same
    number of batches, and a resumed run sees the batches that an uninterrupted one sees.

    Args:
        lengths: tokens of each row.
        padded: the rows of a batch are padded to the longest: rows of similar length share a batch, whose size is
            rows * longest instead of the sum of lengths.
        seed: None keeps the rows in their order, for evaluation.
        multiple_of: make the number of batches a multiple of this (the number of training processes), by splitting
            the largest batches, or by repeating batches when each has one row.
    """

    def __init__(
        self, lengths: Sequence[int], max_tokens: int, padded: bool, seed: int | None = None, multiple_of: int = 1
    ) -> None:
        self.seed = seed
        self.epoch = 0
        self.sampler = self  # accelerate wraps this sampler and calls `set_epoch` on the wrapper's `.sampler`
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
        """Order the batches for this epoch, counted from 0."""
        self.epoch = epoch


class LengthGroups(Sampler[int]):  # type: ignore[misc]  # torch is untyped here
    """transformers' grouping of rows by length, in an order that depends on seed and epoch alone.

    Args:
        lengths: tokens of each row.
        rows: batch size; the longest row of all is in the first batch, so that running out of memory shows at once.
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
    """Batches of `batch_size` rows, dealt in turn to `processes`: the same number each, no row twice.

    The rows left at the end of an epoch are split evenly between the processes; accelerate's own sharding would fill
    up with rows from the beginning. Rows are repeated only when fewer are left than there are processes.

    Args:
        sampler: yields the rows of an epoch in order; has `set_epoch`.
    """

    def __init__(self, sampler: Any, batch_size: int, processes: int) -> None:
        self.sampler = sampler
        self.rows, self.processes = batch_size, processes

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.rows * self.processes)
        return (whole + (rest > 0)) * self.processes  # processes * ceil(N / (rows * processes))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        whole = len(order) - len(order) % (self.rows * self.processes)  # rows in batches of which each process gets one
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
        # Tokens of the last batch with this row: rows * longest when padded, else the sum of lengths.
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


class InformedCollator:
    """A collator that adds to a batch what would take a wait for the device to find out there.

    `rows` are the numbers of its rows in the data file, for messages: an example has its number in `row`, a packed one
    a list of numbers in `rows`; without either `rows` is empty. `tokens` is the number of tokens without padding;
    `supervised_positions` are the places that predict a supervised token (`sft.kernels.loss`).
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of these examples."""
        batch = self.collate(examples)
        numbers = [example["rows"] if "rows" in example else [example.get("row")] for example in examples]
        mask = batch.get("attention_mask")
        return batch | {
            "rows": [number for group in numbers for number in group if number is not None],
            "tokens": int(batch["input_ids"].numel() if mask is None else mask.sum()),
            POSITIONS: find_supervised_positions(batch["labels"]),
        }


def warn_of_long_rows(lengths: Sequence[int], max_tokens: int) -> list[str]:
    """One warning about rows that are longer than `max_tokens`, if there are any."""
    longer = [length for length in lengths if length > max_tokens]
    if not longer:
        return []
    return [
        f"{len(longer)} rows are longer than max_batch_tokens {max_tokens} and each is a batch alone, of up to "
        f"{max(longer)} tokens; raise it to {max(longer)}, or lower max_seq_length"
    ]
