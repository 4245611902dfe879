"""`DatasetReference`: which dataset, as requests, jobs and command lines name it. The only place that reads one."""

from dataclasses import dataclass
from typing import Self

MARK = "@"
_FILE_BEGINNINGS = ("/", "./", "../", "~")
FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True, slots=True)
class DatasetReference:
    """`name@revision` of the dataset registry, or a name alone.

    A name alone is a file or folder below the data root, a dataset on the registry's main branch, or one on the Hub;
    which of them, only a look tells. `str` gives back exactly the text that was parsed.

    Attributes:
        name: Holds no `@`.
        revision: A tag, a branch or a commit, which may hold an `@`. None for a name alone.

    Raises:
        ValueError: a name with an `@`, which would be read as another name.
    """

    name: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if MARK in self.name:
            raise ValueError(f"a dataset's name holds no {MARK}, got {self.name!r}; what follows it is the revision")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read any text, as `dataset_name` has it; `find_problem` tells whether it can be looked for."""
        name, mark, revision = text.partition(MARK)
        return cls(name, revision if mark else None)

    @classmethod
    def parse_version(cls, text: str, default_name: str) -> Self:
        """Read `dataset_version`, in which a revision alone is one of the dataset `default_name`."""
        return cls.parse(text if MARK in text else f"{default_name}{MARK}{text}")

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}{MARK}{self.revision}"

    def to_version(self, default_name: str) -> str:
        """As `dataset_version` has it: a revision of the dataset `default_name` stands alone where it can."""
        if self.name == default_name and self.revision and MARK not in self.revision:
            return self.revision
        return str(self)

    @property
    def last_name(self) -> str:
        """The name without the folders or the owner before it."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def has_file_for_revision(self) -> bool:
        """Whether what stands for the revision looks like a file."""
        revision = self.revision or ""
        return revision.startswith(_FILE_BEGINNINGS) or revision.lower().endswith(FILE_SUFFIXES)

    def find_problem(self) -> str | None:
        """Why there can't be such a dataset, in a sentence for behind the field's name."""
        text = str(self)
        if "\0" in text:
            return f"{text!r} must hold no NUL character; name a dataset, a file or a Hub dataset"
        if not self.name.strip() or (self.revision is not None and not self.revision.strip()):
            return f"{text!r} is not of the form name@revision; put the dataset before the @ and its revision behind it"
        return None
