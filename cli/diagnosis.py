"""What a check of `tuneyard doctor` concludes."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Severity of a diagnosis; jobs can't run with a `FAIL`."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check, with a remedy if there is a problem."""

    level: Level
    topic: str
    detail: str
    remedy: str | None = None
