"""Findings of the checks before a submission, as warnings or as an error."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from sft.errors import TuneyardError

STRICT_HINT = "To submit the job anyway, turn strict off (?strict=false, --no-strict)"


class SubmissionWarning(TypedDict):
    """A finding in a response."""

    code: str
    message: str


@dataclass(frozen=True)
class Finding:
    """A problem that would fail a job. `text` continues the sentence after the name of `field`.

    That is one of SFTConfig, with the place in a list after a dot.
    """

    kind: type[TuneyardError]
    field: str
    text: str

    def message(self, names: Mapping[str, str]) -> str:
        """The message, with an API's names of fields."""
        name, dot, place = self.field.partition(".")
        return f"{names.get(name, name)}{dot}{place} {self.text}"


@dataclass(frozen=True)
class SubmissionCheck:
    """The checks of a submission: findings are warnings in the response or, with `is_strict`, an error.

    Attributes:
        start: Starts the checks, which run while the job is created; returns a function that waits for the findings.
        names: The API's names of SFTConfig's fields, where they differ.
    """

    start: Callable[[], Callable[[], Sequence[Finding]]] = lambda: tuple
    names: Mapping[str, str] = field(default_factory=dict)
    is_strict: bool = False

    def begin(self) -> None:
        """Start the checks, unless they were started."""
        self._find  # noqa: B018 - cached

    def collect(self) -> None:
        """Wait for the findings."""
        self._findings  # noqa: B018 - cached

    @property
    def refusal(self) -> TuneyardError | None:
        """The error, if the checks are strict and there are findings."""
        return to_error(self._findings, self.names) if self.is_strict else None

    @property
    def warnings(self) -> tuple[SubmissionWarning, ...]:
        """The warnings for the response."""
        return tuple(to_warnings(self._findings, self.names))

    @cached_property
    def _find(self) -> Callable[[], Sequence[Finding]]:
        return self.start()

    @cached_property
    def _findings(self) -> Sequence[Finding]:
        return self._find()


NO_CHECK = SubmissionCheck()


def to_warnings(findings: Sequence[Finding], names: Mapping[str, str]) -> list[SubmissionWarning]:
    """Convert findings to warnings."""
    return [{"code": finding.kind.code, "message": finding.message(names)} for finding in findings]


def to_error(findings: Sequence[Finding], names: Mapping[str, str]) -> TuneyardError | None:
    """Convert findings to one error, of the first one's kind, that names them all; None without findings."""
    if not findings:
        return None
    return findings[0].kind("\n".join([*(finding.message(names) for finding in findings), STRICT_HINT]))
