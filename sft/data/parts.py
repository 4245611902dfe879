"""Finds the parts of a data file that is kept in several, under the Hub's names: `train-00000-of-00005.jsonl` …"""

import re
from pathlib import Path
from typing import NamedTuple

from sft.errors import InvalidDataset

PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.|$)")


class PartName(NamedTuple):
    """What a part's name says: the file's name without its number, the number from 0, and how many there are."""

    before: str
    number: int
    parts: int
    after: str

    def name(self, number: int) -> str:
        """The name of another part."""
        return f"{self.before}-{number:05}-of-{self.parts:05}{self.after}"


def read_part_name(name: str) -> PartName | None:
    """Parse a part's name; None if it is no part."""
    found = PART.search(name)
    return found and PartName(name[: found.start()], int(found[1]), int(found[2]), name[found.end() :])


def list_parts(path: Path) -> list[Path]:
    """All parts of the file that this is one of, in order; the path alone if it is no part.

    Raises:
        InvalidDataset: one is missing.
    """
    part = read_part_name(path.name)
    if part is None or part.parts < 2:
        return [path]
    parts = [path.with_name(part.name(number)) for number in range(part.parts)]
    missing = [one.name for one in parts if not one.exists()]
    if missing:
        raise InvalidDataset(f"{path.name} is one of {part.parts} parts, of which {missing[0]} is missing")
    return parts
