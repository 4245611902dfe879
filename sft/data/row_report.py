"""Reports what became of a file's rows: counts, first rows of each kind, reasons, ignored fields."""

from collections import Counter
from typing import Any, Self

from sft.config import SFTConfig
from sft.data.supervision import SupervisedText
from sft.errors import InvalidDataset

NOTES_KEPT = 100  # row numbers of each kind; counts are exact
REASONS_KEPT = 100  # different reasons
ROWS_OF_A_REASON = 5
OTHER_REASONS = "other reasons"
REASON_LENGTH = 500  # characters

Note = int | list[int | str]  # a row's number, or [number, reason]
Notes = dict[str, list[Note]]


class SplitReport:
    """What became of the rows of one split.

    Attributes:
        counts: `rows` = `used` + `dropped` (no supervised token) + `invalid` + `too_long` (left out); `truncated`
            counts used and dropped rows; `tokens` and `supervised_tokens` count used ones.
        notes: the first rows of each kind except `used`, by the same names.
        reasons: why rows can't be read, each with its number of rows and the first of them; rows with reasons beyond
            the hundredth different one count under the last.
        rewritten: answers that are not supervised because the chat template rewrites them.
        empty: supervised answers without text.
        ignored: fields that have a value and are not used, with the number of rows.
        varying: uses of the clock or of random numbers by the chat template (`sft.chat.steady.VARYING`).
        longest: tokens of the longest used row.
        largest_id: the largest token id of a used row, -1 without any.
    """

    def __init__(self, rows: int = 0) -> None:
        names = ("used", "dropped", "invalid", "too_long", "truncated", "tokens", "supervised_tokens")
        self.counts = {"rows": rows, **dict.fromkeys(names, 0)}
        self.notes: Notes = {name: [] for name in ("invalid", "dropped", "too_long", "truncated")}
        self.reasons: dict[str, dict[str, Any]] = {}
        self.rewritten = 0
        self.empty = 0
        self.ignored: Counter[str] = Counter()
        self.varying: set[str] = set()
        self.longest = 0
        self.largest_id = -1

    def add(self, later: "SplitReport") -> None:
        """Add the report of rows that follow this one's."""
        for name, count in later.counts.items():
            self.counts[name] += count
        for name, notes in later.notes.items():
            self.notes[name] += notes[: NOTES_KEPT - len(self.notes[name])]
        for told in later.reasons.values():
            kept = self._find_reason(told["reason"])
            kept["count"] += told["count"]
            kept["rows"] += told["rows"][: ROWS_OF_A_REASON - len(kept["rows"])]
        self.rewritten += later.rewritten
        self.empty += later.empty
        self.ignored.update(later.ignored)
        self.varying |= later.varying
        self.longest = max(self.longest, later.longest)
        self.largest_id = max(self.largest_id, later.largest_id)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return vars(self) | {"varying": sorted(self.varying)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What `to_dict` returned."""
        report = cls()
        vars(report).update(values | {"ignored": Counter(values["ignored"]), "varying": set(values["varying"])})
        return report

    def note(self, kind: str, number: int, reason: str | None = None) -> None:
        """Count a row and keep the numbers of the first ones."""
        self.counts[kind] += 1
        if len(self.notes[kind]) < NOTES_KEPT:
            self.notes[kind].append(number if reason is None else [number, clean_reason(reason)])
        if reason is not None:
            told = self._find_reason(clean_reason(reason))
            told["count"] += 1
            if len(told["rows"]) < ROWS_OF_A_REASON:
                told["rows"].append(number)

    def _find_reason(self, reason: str) -> dict[str, Any]:
        if reason not in self.reasons and len(self.reasons) >= REASONS_KEPT - 1:
            reason = OTHER_REASONS
        return self.reasons.setdefault(reason, {"reason": reason, "count": 0, "rows": []})

    def note_text(self, text: SupervisedText) -> None:
        """Count what a rendered row reports: rewritten and empty answers, ignored fields."""
        self.rewritten += text.rewritten
        self.empty += text.empty
        self.ignored.update(text.ignored)

    def check_lengths(self, config: SFTConfig) -> None:
        """Raise InvalidDataset if rows are too long and the configuration makes that an error."""
        if self.counts["too_long"] and config.excess_length_strategy == "error":
            numbers = ", ".join(map(str, self.notes["too_long"][:5]))
            raise InvalidDataset(
                f"{self.counts['too_long']} rows are longer than max_seq_length {config.max_seq_length} (row "
                f"{numbers}); raise it, or set excess_length_strategy to truncate or drop"
            )

    def explain_emptiness(self, config: SFTConfig) -> str:
        """Explain why no row was used."""
        return f"of {self.counts['rows']} rows {', '.join(self.list_skipped(config))}"

    def list_skipped(self, config: SFTConfig) -> list[str]:
        """Number of unused rows by reason, as phrases."""
        counts, parts = self.counts, []
        if counts["invalid"]:
            number, reason = self.notes["invalid"][0]  # type: ignore[misc]  # invalid rows have a reason
            parts.append(f"{counts['invalid']} can't be read (row {number}: {reason})")
        if counts["too_long"]:
            parts.append(f"{counts['too_long']} are longer than max_seq_length {config.max_seq_length}")
        if counts["dropped"]:
            parts.append(f"{counts['dropped']} have no answer to learn within max_seq_length {config.max_seq_length}")
        return parts


def clean_reason(reason: str) -> str:
    """Make a reason safe to log and send, whatever a broken row contains."""
    return reason[:REASON_LENGTH].encode("utf-8", "backslashreplace").decode()
