"""Mixes the prepared rows of several datasets by weights; each of them stays a cached folder of its own.

With weight w an epoch takes floor(w * rows + 1/2) of a dataset's training rows: each one floor(w) times, and for what
is left of the weight those whose place has the lowest hashes with the seed. So the choice is the same in each epoch
and on each machine, a higher weight only adds rows, and no row has to be read for it.
"""

import hashlib
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft.data.row_advice import count_skipped
from sft.data.row_report import Notes
from sft.data.tokenization import PreparedData
from sft.errors import InvalidDataset

if TYPE_CHECKING:
    from datasets import Dataset

PLANNED_ROWS = 20_000  # of an epoch, at most, that a plan looks at
Counts = dict[str, int]


class MixedPart(NamedTuple):
    """A dataset of a mix: its name, a `label` for metrics, its weight (None: only to evaluate on) and its rows.

    Labels of those that are evaluated are different.
    """

    name: str
    label: str
    weight: float | None
    rows: PreparedData

    @property
    def train(self) -> Counts | None:
        """The counts of the rows to train on; None if it has none."""
        return None if self.weight is None else self.rows.stats["train"]

    @property
    def eval(self) -> Counts | None:
        """The counts of the rows to evaluate on; None if it has none."""
        return self.rows.stats["train" if self.weight is None else "eval"]


class MixedData:
    """The rows of a job's datasets, in the form of one `PreparedData`.

    Row numbers count through the datasets' files in their order; `name_row` tells the dataset. `stats` are sums over
    the files: what the weights make of them is in `describe_parts`.

    Args:
        parts: datasets to train on, then those to evaluate on; if there are none, the rows that each holds out.
        seed: chooses the rows.
        max_samples: at most so many rows of each dataset were prepared.
        is_plan: load fewer rows, in the same proportions; `scale` says how many each stands for.

    Raises:
        InvalidDataset: a weight leaves no row of its dataset.
    """

    def __init__(
        self, parts: list[MixedPart], seed: int, max_samples: int | None = None, is_plan: bool = False
    ) -> None:
        self.parts, self.seed = parts, seed
        scales = [part.rows.measure_scales(max_samples) for part in parts]
        self._scales = [scale for scale, _ in scales]
        self._eval_scales = [pair[part.weight is not None] for part, pair in zip(parts, scales, strict=True)]
        self._taken = [self._count_taken(place) for place in range(len(parts))]
        self.scale = max(1.0, sum(self._taken) / PLANNED_ROWS) if is_plan else 1.0
        self._offsets = [0, *accumulate(map(_find_last_number, parts))]
        self.was_cached = all(part.rows.was_cached for part in parts)
        sides = {"train": [part.train for part in parts], "eval": [part.eval for part in parts]}
        self.stats = {side: _add(found) for side, found in sides.items()}
        self.notes: dict[str, Notes] = {side: self._gather_notes(side) for side in sides}
        self.reasons = {side: self._gather_reasons(side) for side in sides}
        self.ignored = dict(sum((Counter(part.rows.ignored) for part in parts), Counter[str]()))
        self.longest = self._find_largest("longest")
        self.largest_ids = self._find_largest("largest_ids")
        self.advice = [(code, f"{part.name}: {message}") for part in parts for code, message in part.rows.advice]
        self.sample = self._add_samples()

    @property
    def warnings(self) -> list[str]:
        """The sentences of `advice`."""
        return [message for _, message in self.advice]

    def describe_rows(self) -> dict[str, Any]:
        """Counts and reasons by split, and the ignored fields, for a job's result."""
        return {**{side: self._describe(counts, side) for side, counts in self.stats.items()}, "ignored": self.ignored}

    def describe_parts(self) -> list[dict[str, Any]]:
        """Each dataset's `name`, `label`, `weight`, counts (`train`, `eval`), and what an epoch takes of its rows.

        `first_row` is the number of its first row where those of all datasets are counted through.
        `taken` = used rows + `repeated` - `left_out`.
        """
        return [self._describe_part(place, part) for place, part in enumerate(self.parts)]

    def measure_scales(self, max_samples: int | None) -> tuple[float, float]:
        """How many rows of an epoch each training row stands for, and how many a held-out one."""
        tokens = [part.eval["tokens"] if part.eval else 0 for part in self.parts]
        whole = sum(scale * count for scale, count in zip(self._eval_scales, tokens, strict=True))
        return self.scale, whole / max(sum(tokens), 1)

    def load_train(self) -> "Dataset":
        """The rows of an epoch, in the columns of `PreparedData`; a row that is taken twice is there twice."""
        from datasets import concatenate_datasets

        loaded, indices, before = [], [], 0
        for place, part in enumerate(self.parts):
            if part.weight is not None:
                rows = self._number(place, part.rows.load_train())
                taken = max(1, floor(self._taken[place] / self.scale + 0.5)) if self.scale > 1 else self._taken[place]
                loaded.append(rows)
                indices.append(before + choose_rows(len(rows), taken, self.seed, place))
                before += len(rows)
        chosen = np.concatenate(indices)  # (rows,)
        whole = concatenate_datasets(loaded)
        return whole if np.array_equal(chosen, np.arange(before)) else whole.select(chosen)

    def load_eval(self) -> "Dataset | None":
        """The rows to evaluate on; None without any."""
        from datasets import concatenate_datasets

        loaded = list(self._load_eval().values())
        return concatenate_datasets(loaded) if loaded else None

    def load_eval_parts(self) -> dict[str, "Dataset"]:
        """The rows to evaluate on by label, if they are of several datasets."""
        loaded = self._load_eval()
        return loaded if len(loaded) > 1 else {}

    def name_row(self, number: int) -> str:
        """The row of this number, for messages."""
        place = bisect_left(self._offsets, number, 1) - 1
        return f"{number - self._offsets[place]} of {self.parts[place].name}"

    def _load_eval(self) -> dict[str, "Dataset"]:
        loaded = {}
        for place, part in enumerate(self.parts):
            if part.eval is not None:
                rows = part.rows.load_train() if part.weight is None else part.rows.load_eval()
                loaded[part.label] = self._number(place, rows)
        return loaded

    def _number(self, place: int, rows: Any) -> "Dataset":
        """The rows with numbers that count through all datasets."""
        numbers = np.array(rows.data.column("row"), np.int64) + self._offsets[place]  # (rows,)
        numbered: Dataset = rows.remove_columns("row").add_column("row", numbers.astype(np.int32))
        return numbered

    def _count_taken(self, place: int) -> int:
        """Rows of a dataset that an epoch takes; in a sample an estimate."""
        part, scale = self.parts[place], self._scales[place]
        if part.weight is None:
            return 0
        used = (part.rows.stats["train"] or {})["used"]
        taken = floor(part.weight * used * scale + 0.5)
        if not taken:
            raise InvalidDataset(
                f"dataset_name.{place}.weight {part.weight:g} leaves none of the {used} rows of {part.name}; raise it"
            )
        return taken

    def _find_largest(self, what: str) -> dict[str, int]:
        """The largest value of an attribute of `PreparedData` by split."""
        return {
            side: max(getattr(part.rows, what)[own] for part in self.parts if (own := self._own_side(part, side)))
            for side in ("train", "eval")
        }

    def _own_side(self, part: MixedPart, side: str) -> str | None:
        """What a part calls these rows; None if they are not used."""
        if part.weight is None:
            return "train" if side == "eval" else None
        return side

    def _gather_notes(self, side: str) -> Notes:
        """Numbers of rows, counted through all datasets."""
        gathered: Notes = {}
        for place, part in enumerate(self.parts):
            if own := self._own_side(part, side):
                for kind, notes in part.rows.notes[own].items():
                    gathered.setdefault(kind, []).extend(self._move_note(place, note) for note in notes)
        return gathered

    def _move_note(self, place: int, note: Any) -> Any:
        before = self._offsets[place]
        return [note[0] + before, f"{self.parts[place].name}: {note[1]}"] if isinstance(note, list) else note + before

    def _gather_reasons(self, side: str) -> list[dict[str, Any]]:
        """Each with the dataset's name, whose own numbers its rows have."""
        return [
            {**reason, "reason": f"{part.name}: {reason['reason']}"}
            for part in self.parts
            if (own := self._own_side(part, side))
            for reason in part.rows.reasons[own]
        ]

    def _add_samples(self) -> Counts | None:
        if all(part.rows.sample is None for part in self.parts):
            return None
        added = dict.fromkeys(("rows", "of", "eval_rows", "eval_of"), 0)
        for part in self.parts:
            counts = part.rows.stats["train"] or {"rows": 0}
            whole = {"rows": counts["rows"], "of": counts["rows"], "eval_rows": 0, "eval_of": 0}
            sample = part.rows.sample or whole
            if part.weight is None:
                sample = {"eval_rows": sample["rows"], "eval_of": sample["of"]}
            for name, count in sample.items():
                added[name] += count
        return added

    def _describe(self, counts: Counts | None, side: str) -> dict[str, Any] | None:
        return counts and {**counts, "skipped": count_skipped(counts), "reasons": self.reasons[side]}

    def _describe_part(self, place: int, part: MixedPart) -> dict[str, Any]:
        sides = {"train": part.train, "eval": part.eval}
        described: dict[str, Any] = {"name": part.name, "label": part.label, "weight": part.weight}
        described["first_row"] = self._offsets[place] + 1
        for side, counts in sides.items():
            own = self._own_side(part, side)
            reasons = part.rows.reasons[own] if own else []
            described[side] = counts and {**counts, "skipped": count_skipped(counts), "reasons": reasons}
        if part.train is None:
            return described | dict.fromkeys(("taken", "repeated", "left_out"), None)
        taken, used = self._taken[place], floor(part.train["used"] * self._scales[place] + 0.5)
        return described | {"taken": taken, "repeated": max(0, taken - used), "left_out": max(0, used - taken)}


AnyRows = PreparedData | MixedData


def choose_rows(rows: int, taken: int, seed: int, place: int) -> NDArray[np.int64]:
    """Indices, (taken,), of the rows that an epoch takes of the dataset at this place of the list."""
    times, rest = divmod(taken, rows)
    everything = np.arange(rows)
    chosen = [everything] * times
    if rest:
        ranks = np.array([_hash(f"{seed} {place} {index}") for index in range(rows)], np.uint64)
        chosen.append(np.sort(np.argsort(ranks, kind="stable")[:rest]))
    return np.concatenate(chosen)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _add(sides: list[Counts | None]) -> Counts | None:
    found = [counts for counts in sides if counts]
    return {name: sum(counts[name] for counts in found) for name in found[0]} if found else None


def _find_last_number(part: MixedPart) -> int:
    """A number that no row of the dataset's files is beyond, and no note."""
    loaded = [rows for rows in (part.rows.load_train(), part.rows.load_eval()) if rows is not None]
    used = [int(np.array(rows.data.column("row"), np.int64).max()) for rows in loaded]
    noted = [
        note[0] if isinstance(note, list) else note
        for notes in part.rows.notes.values()
        for kind in notes.values()
        for note in kind
    ]
    return max([*used, *map(int, noted)])
