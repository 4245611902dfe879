"""`DatasetReference`: the name of a dataset in requests, jobs and on the command line. Only this module parses one."""

from dataclasses import dataclass
from typing import Self

MARK = "@"
_PATH_PREFIXES = ("/", "./", "../", "~")
FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".jsonl.zst")


def find_file_suffix(name: str) -> str | None:
    """The suffix of a data file's name, in lower case; None if it is not a data file."""
    return next((suffix for suffix in FILE_SUFFIXES if name.lower().endswith(suffix)), None)


@dataclass(frozen=True, slots=True)
class DatasetReference:
    """`name@revision` of the dataset registry, or a name alone.

    A name alone may be a file or folder below the data root, a dataset on the registry's main branch, or one on the
    Hub. `str` returns exactly the text that was parsed.

    Attributes:
        name: Contains no `@`.
        revision: A tag, a branch or a commit, which may contain an `@`. None for a name alone.

    Raises:
        ValueError: the name contains an `@`, so it would be parsed as another name.
    """

    name: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if MARK in self.name:
            raise ValueError(f"a dataset's name must not contain {MARK}, got {self.name!r}; a revision follows it")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a `dataset_name`. Any text is accepted; `find_problem` validates it."""
        name, mark, revision = text.partition(MARK)
        return cls(name, revision if mark else None)

    @classmethod
    def parse_version(cls, text: str, default_name: str) -> Self:
        """Parse a `dataset_version`, in which a revision alone belongs to the dataset `default_name`."""
        return cls.parse(text if MARK in text else f"{default_name}{MARK}{text}")

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}{MARK}{self.revision}"

    def to_version(self, default_name: str) -> str:
        """Format as a `dataset_version`: without the name if it is `default_name` and that is unambiguous."""
        if self.name == default_name and self.revision and MARK not in self.revision:
            return self.revision
        return str(self)

    @property
    def last_name(self) -> str:
        """The name without its folders or owner."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def has_file_for_revision(self) -> bool:
        """Whether the revision looks like a file."""
        revision = self.revision or ""
        return revision.startswith(_PATH_PREFIXES) or revision.lower().endswith(FILE_SUFFIXES)

    def find_problem(self) -> str | None:
        """Explain why the reference is invalid, in a sentence that follows the field's name; None if it is valid."""
        text = str(self)
        if "\0" in text:
            return f"{text!r} must not contain a NUL character; name a dataset, a file or a Hub dataset"
        if not self.name.strip() or (self.revision is not None and not self.revision.strip()):
            return f"{text!r} is not of the form name@revision; put the dataset before the @ and its revision after it"
        return None
