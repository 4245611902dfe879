"""Simulates the batches of a job and counts its optimizer steps."""

import bisect
import math
from typing import Any, NamedTuple

import numpy as np

from sft.config import SFTConfig
from sft.planning.tokens import Ints, TokenRows

MIN_BATCHES, MAX_BATCHES = 200, 20_000  # batches simulated, for stable means and maxima
MANY_ROWS = 20_000  # more are represented by so many of them


class Batches(NamedTuple):
    """The batches of a job, per device. `sample` has the row indices of a batch of about mean size."""

    per_epoch: int
    steps: int  # optimizer steps of the whole job
    epochs: float
    mean_tokens: float
    max_tokens: int
    padded_tokens: int  # tokens per epoch in batches of batch_size rows, each padded to its longest row
    packed_rows: int | None  # number of packed sequences, with packing
    sample: list[int]
    heaviest: list[int]  # row indices of the largest batch

    @property
    def trained(self) -> float:
        """Number of batches of the whole job, per device."""
        return self.per_epoch * self.epochs


def plan_batches(config: SFTConfig, lengths: Ints, is_padded: bool, scale: float = 1.0) -> Batches:
    """Cut the shuffled rows into at least MIN_BATCHES batches.

    Args:
        is_padded: whether the trainer pads a batch to its longest row. Rows of similar length then share a batch, and
            padding counts as tokens.
        scale: number of rows that each of these stands for.
    """
    rows = len(lengths)
    lengths, scale = repeat_lengths(lengths, scale)  # the more rows, the more alike are those that share a batch
    packed = None
    if config.packing:
        packs = pack_lengths(lengths, config.max_seq_length)
        packed = round(len(packs) * scale)
        members = [[row for unit in group for row in packs[unit]] for group in _shuffle(config, len(packs))]
        per_epoch = math.ceil(packed / (config.batch_size * config.num_devices))
    elif config.max_batch_tokens:
        from sft.training.batches import TokenBatches

        budget = TokenBatches(lengths.tolist(), config.max_batch_tokens, is_padded, config.seed, config.num_devices)
        members, per_epoch = budget.batches, math.ceil(len(budget) * scale / config.num_devices)
    else:
        is_grouped = is_padded and config.num_devices == 1
        members = _group(config, lengths) if is_grouped else _shuffle(config, len(lengths))
        per_epoch = math.ceil(round(len(lengths) * scale) / (config.batch_size * config.num_devices))
    if is_padded and not config.packing:
        totals = np.array([int(lengths[group].max()) * len(group) for group in members])
        a_row = float(totals.sum()) / sum(map(len, members))
    else:
        totals = np.array([int(lengths[group].sum()) for group in members])
        a_row = float(lengths.mean())
    mean = a_row * len(lengths) * scale / per_epoch / config.num_devices
    steps_per_epoch = max(math.ceil(per_epoch / config.gradient_accumulation_steps), 1)
    steps = config.max_steps or math.ceil(config.num_epochs * steps_per_epoch)
    return Batches(
        per_epoch=per_epoch,
        steps=steps,
        epochs=steps / steps_per_epoch,
        mean_tokens=mean,
        max_tokens=int(totals.max()),
        padded_tokens=round(_count_padded(config, lengths) * scale),
        packed_rows=packed,
        sample=[row % rows for row in members[int(np.abs(totals - mean).argmin())]],
        heaviest=[row % rows for row in members[int(totals.argmax())]],
    )


def repeat_lengths(lengths: Ints, scale: float) -> tuple[Ints, float]:
    """Lengths of up to MANY_ROWS rows that stand for so many times these, and the number that each stands for."""
    copies = max(1, min(int(scale), MANY_ROWS // len(lengths)))
    return np.tile(lengths, copies), scale / copies


def pack_lengths(lengths: Ints, capacity: int) -> list[list[int]]:
    """Pack by best-fit decreasing, as TRL's `pack_dataset(strategy="bfd")`; returns row indices per sequence."""
    space: list[tuple[int, int]] = []  # (tokens left, sequence), sorted
    packs: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = min(int(lengths[row]), capacity)
        place = bisect.bisect_left(space, (length, -1))
        left, pack = space.pop(place) if place < len(space) else (capacity, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(row)
        bisect.insort(space, (left - length, pack))
    return packs


def describe_batches(config: SFTConfig, rows: TokenRows, batches: Batches, scale: float = 1.0) -> dict[str, Any]:
    """The response's `batches`."""
    tokens = round(int(rows.lengths.sum()) * scale)
    return {
        "rows_per_step": config.get_effective_batch_size(),
        "batches_per_epoch": batches.per_epoch,
        "mean_tokens": round(batches.mean_tokens, 1),
        "max_tokens": batches.max_tokens,
        "padded_tokens_per_epoch": batches.padded_tokens,
        "tokens_per_epoch": tokens,
        "padding_saved": round(1 - tokens / batches.padded_tokens, 4),
        "packed_sequences": batches.packed_rows,
    }


def _count_padded(config: SFTConfig, lengths: Ints) -> int:
    """Tokens per epoch with `batch_size` rows padded to the longest, in the seed's first shuffle."""
    shuffled = lengths[np.random.default_rng(config.seed).permutation(len(lengths))]
    starts = np.arange(0, len(lengths), config.batch_size)
    longest = np.maximum.reduceat(shuffled, starts)  # (batches,)
    return int((longest * np.diff(starts, append=len(lengths))).sum())


def _group(config: SFTConfig, lengths: Ints) -> list[list[int]]:
    """Batches of several epochs of rows that are grouped by length, as the trainer does."""
    from sft.training.batches import LengthGroups

    sampler = LengthGroups(lengths.tolist(), config.batch_size, config.seed)
    groups: list[list[int]] = []
    while len(groups) < MIN_BATCHES:
        order = list(sampler)
        groups += [order[at : at + config.batch_size] for at in range(0, len(order), config.batch_size)]
        sampler.set_epoch(sampler.epoch + 1)
    return groups


def _shuffle(config: SFTConfig, units: int) -> list[list[int]]:
    """Batches of several shuffles of so many rows or packed sequences."""
    generator = np.random.default_rng(config.seed)
    groups: list[list[int]] = []
    while len(groups) < MIN_BATCHES:
        order = generator.permutation(units).tolist()
        groups += [order[at : at + config.batch_size] for at in range(0, units, config.batch_size)]
    return groups[:MAX_BATCHES]
