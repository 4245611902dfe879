"""`DataVersion`: one version of a dataset that a user added, as its registry records it."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from tuneyard_wire.dataset_reference import DatasetReference


@dataclass(frozen=True)
class DataVersion:
    """A version, and what the check of its file found (`sft.data.file_report.FileReport`).

    Attributes:
        commit: full SHA in the registry's git repository; empty before it is published.
        suffix: of the file, by which its kind is known.
        filename: as it was uploaded.
        owner: the API key that added it; None if none was required.
    """

    name: str
    number: int
    commit: str
    suffix: str
    filename: str
    size: int  # bytes
    md5: str
    sha256: str
    created_at: datetime
    rows: int
    bad: int
    duplicates: int
    format: str | None
    columns: tuple[str, ...]
    bad_rows: tuple[tuple[int, str], ...]
    reasons: tuple[dict[str, Any], ...]
    owner: UUID | None = None

    @property
    def version(self) -> str:
        """`v1`, `v2` ..."""
        return f"v{self.number}"

    @property
    def reference(self) -> DatasetReference:
        """What a job names."""
        return DatasetReference(self.name, self.version)

    @property
    def file(self) -> str:
        """Name of its file in the registry."""
        return f"{self.name}{self.suffix}"

    def to_json(self) -> str:
        """As text; the commit is left out, since it depends on this."""
        plain = asdict(self) | {"created_at": self.created_at.isoformat(), "owner": self.owner and str(self.owner)}
        del plain["commit"]
        return json.dumps(plain, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, commit: str) -> Self:
        """Read what `to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        values = json.loads(text)
        return cls(
            **values
            | {
                "commit": commit,
                "created_at": datetime.fromisoformat(values["created_at"]),
                "owner": UUID(values["owner"]) if values["owner"] else None,
                "columns": tuple(values["columns"]),
                "bad_rows": tuple((number, reason) for number, reason in values["bad_rows"]),
                "reasons": tuple(values["reasons"]),
            }
        )

    def numbered(self, number: int) -> "DataVersion":
        """The same with another number."""
        return replace(self, number=number)
