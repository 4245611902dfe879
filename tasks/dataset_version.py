"""`DatasetVersion`: what step 1 of a job finds, and later steps record."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from tasks.dataset_store import StoredDataset
from tuneyard_wire.dataset_reference import DatasetReference

UNUSED_SHOWN = 10


@dataclass(frozen=True)
class DatasetVersion:
    """An exact version of a dataset: its origin and its files."""

    name: str
    revision: str | None  # as requested; None for a plain file
    commit: str | None  # full SHA of the registry's or the Hub's git repository
    md5: str  # DVC's: of the file, or of the folder's list of files (ends in `.dir`)
    train_file: Path
    eval_file: Path | None
    rows: int  # in train_file
    source: Literal["dvc", "file", "hub"]
    url: str
    unused: tuple[str, ...] = ()  # other files that look like rows

    @property
    def versions(self) -> tuple["DatasetVersion", ...]:
        """It alone, as a mix has several."""
        return (self,)

    @property
    def reference(self) -> DatasetReference:
        """What it is called in results, model cards and tags: its name, and its revision if it has one."""
        return DatasetReference(self.name, self.revision or None)

    def lineage(self) -> dict[str, str]:
        """What the registry records of it."""
        return {
            "dataset": self.name,
            "dataset_revision": self.revision or "",
            "dataset_commit": self.commit or "",
            "dataset_md5": self.md5,
            "dataset_source": self.source,
        }

    @classmethod
    def of(cls, stored: StoredDataset, **origin: Any) -> Self:
        """Combine stored files with their origin."""
        return cls(**vars(stored), **origin)

    def advise(self, split: str = "train") -> list[tuple[str, str]]:
        """What a user should know about these files, given the requested `split`: stable codes with a sentence."""
        return [*self._tell_split(split), *self._tell_unused()]

    def _tell_split(self, split: str) -> list[tuple[str, str]]:
        name = self.train_file.name
        if split == "train" or name.startswith(PurePosixPath(split).name):
            return []
        what = (
            f"dataset_split {split!r} has no effect: the dataset is the single file {name}, of which all rows are used"
        )
        return [("ignored_fields", what)]

    def _tell_unused(self) -> list[tuple[str, str]]:
        if not self.unused:
            return []
        shown = ", ".join(self.unused[:UNUSED_SHOWN]) + (" …" if len(self.unused) > UNUSED_SHOWN else "")
        held_out = f"; held out is {self.eval_file.name}" if self.eval_file else ""
        return [("unused_files", f"not used: {shown} (training uses {self.train_file.name}{held_out})")]
