"""What a check before a submission has found, and how it is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

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


class Doubts(NamedTuple):
    """What was found of a job: told beside the answer, or in its place."""

    warnings: tuple[SubmissionWarning, ...] = ()
    refusal: TuneyardError | None = None

    @classmethod
    def of(cls, findings: Sequence[Finding], names: Mapping[str, str], is_strict: bool) -> Self:
        """In an interface's words; with `is_strict` any finding is a refusal."""
        return cls(tuple(tell(findings, names)), refuse(findings, names) if is_strict else None)


NO_DOUBTS = Doubts()


def tell(findings: Sequence[Finding], names: Mapping[str, str]) -> list[SubmissionWarning]:
    """The findings beside an answer."""
    return [{"code": finding.kind.code, "message": finding.message(names)} for finding in findings]


def refuse(findings: Sequence[Finding], names: Mapping[str, str]) -> TuneyardError | None:
    """The findings in place of an answer: an error of the first one's kind that names them all."""
    if not findings:
        return None
    return findings[0].kind("\n".join([*(finding.message(names) for finding in findings), WAY_OUT]))
