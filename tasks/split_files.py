"""Chooses the training file and the held-out file in a dataset's folder."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from sft.data.file_content import COMPRESSED_SUFFIXES
from sft.data.parts import read_part_name
from sft.errors import DatasetNotFound, InvalidDataset
from tuneyard_wire.dataset_reference import FILE_SUFFIXES, find_file_suffix

UNREAD = (".tsv", ".txt", ".ndjson", ".jsonlines", ".arrow", ".xlsx", ".xls", ".yaml", ".yml", ".pkl")
NAMES_SHOWN = 20
HELD_OUT = ("eval", "validation", "valid", "val", "dev", "test")  # the first that exists is used


class SplitFiles(NamedTuple):
    """Names in a folder: training file, held-out file (of parts the first), and `unused` files that look like rows."""

    train: str
    held_out: str | None
    unused: list[str]


class DataFile(NamedTuple):
    """A file by its name: `split` without suffixes, and the obstacle if it can't be read.

    `whole` is the name of the file that it is a part of, or its own.
    """

    name: str
    split: str
    suffix: str
    obstacle: str | None
    whole: str


def list_held_out(split: str) -> list[str]:
    """Candidate names of a split's held-out rows, best first: `test_sft` belongs to `train_sft`."""
    partners = [split.replace("train", name) for name in HELD_OUT] if "train" in split else []
    return [name for name in dict.fromkeys([*partners, *HELD_OUT]) if name != split]


def pick_files(names: Iterable[str], split: str) -> SplitFiles:
    """Choose the files of a split and its held-out rows among the names in a dataset's folder.

    Raises:
        DatasetNotFound: no file has the split's name.
        InvalidDataset: such a file exists but can't be read.
    """
    names = sorted(name for name in names if not name.startswith("."))
    files = [file for name in names if (file := _read_name(name, names))]
    train = _find(files, split)
    if train is None:
        looked_for = ", ".join(f"{split}{suffix}" for suffix in FILE_SUFFIXES)
        raise DatasetNotFound(
            f"the dataset has no {looked_for}, nor parts such as {split}-00000-of-00002.jsonl; it has: "
            f"{_list_some(names) or 'no files'}"
        )
    if train.obstacle:
        raise InvalidDataset(f"the dataset's {train.name} {train.obstacle}")
    known = list_held_out(split)
    held_out = next((file for name in known if (file := _find(files, name)) and not file.obstacle), None)
    if "train" not in split:  # a user who names another split knows about the others
        return SplitFiles(train.name, held_out and held_out.name, [])
    others = {name for name in known if held_out and held_out.split != name}
    used = {file.whole for file in (train, held_out) if file}
    unused = [file.name for file in files if file.whole not in used and file.split not in others]
    return SplitFiles(train.name, held_out and held_out.name, unused)


def is_rows(name: str) -> bool:
    """Whether a file name, in any case, is that of a data file."""
    return find_file_suffix(name) is not None


def _find(files: list[DataFile], split: str) -> DataFile | None:
    """Find the file of a split: readable ones first, then in the order of FILE_SUFFIXES."""
    found = [file for file in files if file.split == split]
    return min(
        found, key=lambda file: (file.obstacle is not None, (*FILE_SUFFIXES, *UNREAD).index(file.suffix)), default=None
    )


def _read_name(name: str, names: list[str]) -> DataFile | None:
    """Parse a file's name; None if it is not a data file. `names` are those of all files."""
    path, obstacle, suffix = PurePosixPath(name), None, find_file_suffix(name)
    if suffix is None and path.suffix.lower() in COMPRESSED_SUFFIXES:
        path, obstacle = path.with_suffix(""), "is compressed; unpack it"
    suffix = suffix or path.suffix.lower()
    split = str(path)[: -len(suffix) or None]
    if suffix in UNREAD and re.split(r"[-_]", split)[0] in ("train", *HELD_OUT):
        obstacle = obstacle or f"is of a kind that is not read; save it as one of {', '.join(FILE_SUFFIXES)}"
    elif suffix not in FILE_SUFFIXES:
        return None
    whole = name
    if part := read_part_name(split):
        split, whole = part.before, f"{part.before}-of-{part.parts}{suffix}"
        parts = (part.name(number) + str(path)[-len(suffix) :] for number in range(part.parts))
        if missing := next((one for one in parts if one not in names), None):
            obstacle = obstacle or f"is one of {part.parts} parts, of which {missing} is missing"
    return DataFile(name, split, suffix, obstacle, whole)


def _list_some(names: list[str]) -> str:
    """List the first names of possibly many."""
    return ", ".join(names[:NAMES_SHOWN]) + (
        f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    )
