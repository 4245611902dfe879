"""What a check before a submission has found, and how it is told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from sft.errors import TuneyardError

WAY_OUT = "To submit the job all the same, turn strict off (?strict=false, --no-strict)"


class SubmissionWarning(TypedDict):
    """A finding as clients see it."""

    code: str
    message: str


@dataclass(frozen=True)
class Finding:
    """Something about a job that would fail it. `field` is of SFTConfig; `text` goes on from its name."""

    kind: type[TuneyardError]
    field: str
    text: str

    def message(self, names: Mapping[str, str]) -> str:
        """In the words of an interface that has other names for some fields."""
        return f"{names.get(self.field, self.field)} {self.text}"


@dataclass(frozen=True)
class Doubts:
    """A job's findings in an interface's words: warnings in the response or, with `is_strict`, an error in its place.

    `start` begins the checks and returns what waits for their findings: they run while the job is made.
    """

    start: Callable[[], Callable[[], Sequence[Finding]]] = lambda: tuple
    names: Mapping[str, str] = field(default_factory=dict)
    is_strict: bool = False

    def begin(self) -> None:
        """Begin the checks, if they have not begun yet."""
        self._find  # noqa: B018 - it is remembered

    def collect(self) -> None:
        """Wait for what is found, if it has not been asked for yet."""
        self._findings  # noqa: B018 - it is remembered

    @property
    def refusal(self) -> TuneyardError | None:
        """The error in place of an answer."""
        return refuse(self._findings, self.names) if self.is_strict else None

    @property
    def warnings(self) -> tuple[SubmissionWarning, ...]:
        """What is told beside the answer."""
        return tuple(tell(self._findings, self.names))

    @cached_property
    def _find(self) -> Callable[[], Sequence[Finding]]:
        return self.start()

    @cached_property
    def _findings(self) -> Sequence[Finding]:
        return self._find()


NO_DOUBTS = Doubts()


def tell(findings: Sequence[Finding], names: Mapping[str, str]) -> list[SubmissionWarning]:
    """The findings beside an answer."""
    return [{"code": finding.kind.code, "message": finding.message(names)} for finding in findings]


def refuse(findings: Sequence[Finding], names: Mapping[str, str]) -> TuneyardError | None:
    """The findings in place of an answer: an error of the first one's kind that names them all."""
    if not findings:
        return None
    return findings[0].kind("\n".join([*(finding.message(names) for finding in findings), WAY_OUT]))
