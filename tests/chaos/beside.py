"""What goes on beside the jobs, and what was found to be broken of it."""

from dataclasses import dataclass, field
from typing import NamedTuple

DATA_HARMS = ("data_lost", "data_half", "data_duplicated", "data_left")
CHAT_HARMS = ("chats_failed", "memory_taken")
HARMS = (*DATA_HARMS, *CHAT_HARMS)


class Finding(NamedTuple):
    """One broken promise; `harm` is the count that it belongs to."""

    harm: str
    what: str


@dataclass
class Beside:
    """What came of it; `told` has counts of what is not wrong."""

    findings: list[Finding]
    told: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, float]:
        """For the last line of a run; those of HARMS must be 0."""
        return self.told | {harm: sum(finding.harm == harm for finding in self.findings) for harm in HARMS}
