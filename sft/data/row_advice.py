"""Says what became of the rows of a dataset, in sentences."""

from collections import Counter
from collections.abc import Iterator

from sft.chat.steady import VARYING
from sft.config import SFTConfig
from sft.data.row_report import SplitReport


def advise_on_rows(config: SFTConfig, reports: dict[str, SplitReport]) -> Iterator[tuple[str, str]]:
    """What a user should know about these rows, by split: pairs of a stable code and a sentence."""
    for name, report in reports.items():
        if report.counts["used"] and (skipped := count_skipped(report.counts)):
            what = f"{skipped} of {report.counts['rows']} {'held-out ' if name == 'eval' else ''}rows are skipped"
            yield "rows_skipped", f"{what}: {', '.join(report.list_skipped(config))}"
    if ignored := sum((report.ignored for report in reports.values()), Counter[str]()):
        fields = ", ".join(f"{field} ({rows} rows)" for field, rows in ignored.most_common())
        yield "ignored_fields", f"fields that are not used: {fields}"
    if empty := sum(report.empty for report in reports.values()):
        yield "empty_answers", f"{empty} answers have no text: the model learns to end the turn at once"
    if rewritten := sum(report.rewritten for report in reports.values()):
        yield (
            "template",
            f"{rewritten} answers are not trained on: the chat template writes them differently once the conversation "
            "continues (it removes their reasoning, say), or does not show where a first one begins; "
            "a named template_name, such as qwen3, keeps them",
        )
    for part in sorted(set().union(*(report.varying for report in reports.values()))):
        yield f"template_{part}", VARYING[part]
    unused = reports["eval"].counts
    if unused["rows"] and not unused["used"]:
        what = f"none of the {unused['rows']} rows held out for evaluation can be used"
        yield "no_eval_rows", f"{what}, so there is no eval_loss"


def count_skipped(counts: dict[str, int]) -> int:
    """Rows of a split that are not used."""
    return sum(counts[name] for name in ("dropped", "invalid", "too_long"))
