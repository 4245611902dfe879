"""What became of the rows of a file: counts, the first rows of each kind, reasons, fields that were not followed."""

from collections import Counter
from typing import Any

from sft.config import SFTConfig
from sft.data.supervision import SupervisedText

NOTES_KEPT = 100  # of each kind; the counts are exact
REASONS_KEPT = 100  # different ones
ROWS_OF_A_REASON = 5
OTHER_REASONS = "other reasons"
REASON_LENGTH = 500  # characters

Note = int | list[int | str]  # a row's number, or [number, reason]
Notes = dict[str, list[Note]]


class SplitReport:
    """What became of the rows of one split.

    Attributes:
        counts: `rows` = `used` + `dropped` (no supervised token left) + `invalid` + `too_long` (left out for its
            length); `truncated` of the used and dropped; `tokens` and `supervised_tokens` of the used.
        notes: by the same names, the first rows of each kind that is not simply used.
        reasons: why rows can't be read, each with how many rows and the first of them; rows whose reasons are beyond
            the hundredth different one count under the last.
        rewritten: answers that are not learned since the chat template rewrites them.
        empty: learned answers without any text.
        ignored: fields that hold something and are not followed, by the number of rows.
        varying: what the chat template reads of the clock or draws at random (`sft.chat.steady.TOLD`).
    """

    def __init__(self, rows: int) -> None:
        names = ("used", "dropped", "invalid", "too_long", "truncated", "tokens", "supervised_tokens")
        self.counts = {"rows": rows, **dict.fromkeys(names, 0)}
        self.notes: Notes = {name: [] for name in ("invalid", "dropped", "too_long", "truncated")}
        self.reasons: dict[str, dict[str, Any]] = {}
        self.rewritten = 0
        self.empty = 0
        self.ignored: Counter[str] = Counter()
        self.varying: set[str] = set()

    def note(self, kind: str, number: int, reason: str | None = None) -> None:
        """Count a row and, of the first ones, keep its number."""
        self.counts[kind] += 1
        if len(self.notes[kind]) < NOTES_KEPT:
            self.notes[kind].append(number if reason is None else [number, clean_reason(reason)])
        if reason is not None:
            cleaned = clean_reason(reason)
            if cleaned not in self.reasons and len(self.reasons) >= REASONS_KEPT - 1:
                cleaned = OTHER_REASONS
            told = self.reasons.setdefault(cleaned, {"reason": cleaned, "count": 0, "rows": []})
            told["count"] += 1
            if len(told["rows"]) < ROWS_OF_A_REASON:
                told["rows"].append(number)

    def note_text(self, text: SupervisedText) -> None:
        """Count what a row's text leaves out or has too little of."""
        self.rewritten += text.rewritten
        self.empty += text.empty
        self.ignored.update(text.ignored)

    def explain_emptiness(self, config: SFTConfig) -> str:
        """Why no row was used."""
        return f"of {self.counts['rows']} rows {', '.join(self.list_skipped(config))}"

    def list_skipped(self, config: SFTConfig) -> list[str]:
        """How many rows are not used, by why."""
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
    """Fit to be logged and sent, whatever a broken row had in it."""
    return reason[:REASON_LENGTH].encode("utf-8", "backslashreplace").decode()
