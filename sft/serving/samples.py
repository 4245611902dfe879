"""A few rows with the prompts that they come from, to compare a saved model with its training by."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft.config import SFTConfig
from sft.data.encoding import IGNORED
from sft.data.formats import Conversation, PlainText, read_row
from sft.data.messages import Message, Tool
from sft.data.row_blocks import read_blocks
from sft.data.rows import BrokenRow, Row
from sft.data.supervision import name_reasoning

if TYPE_CHECKING:
    from datasets import Dataset

MOST_ROWS = 4
LOOKED_AT = 64  # of the split's first rows: the shortest of them are taken, as they cost least
LEAST_ANSWER, MOST_ANSWER = 64, 512  # tokens that an answer may have, if twice the row's own lies between


class CheckedRow(NamedTuple):
    """A row as it was trained on or evaluated, and what a user would send for it.

    Attributes:
        ids: token ids, (T,); labels: as many, -100 where a token is not supervised.
        prompts: conversations up to one of the row's answers; without any it is `text`.
        is_whole: the prompt is supervised too, so `labels` do not show where it ends.
        answer_tokens: so many tokens an answer may have; 0 if the row has no prompt to answer.
    """

    row: int
    ids: list[int]
    labels: list[int]
    prompts: list[list[Message]]
    tools: list[Tool] | None
    text: str | None
    is_whole: bool
    answer_tokens: int


def choose_rows(rows: "Dataset", max_seq_length: int) -> "Dataset":
    """Choose a few of these prepared rows, none of which was cut."""
    lengths = list(rows.select(range(min(len(rows), LOOKED_AT)))["length"])
    whole = [place for place, length in enumerate(lengths) if length < max_seq_length]
    return rows.select(sorted(sorted(whole, key=lengths.__getitem__)[:MOST_ROWS]))


def read_samples(chosen: "Dataset", file: Path, config: SFTConfig) -> list[CheckedRow]:
    """Read the rows' prompts from the file that they were prepared from.

    Raises:
        InvalidDataset: the file can't be read any more.
    """
    prepared = {int(row["row"]): row for row in chosen}
    found = dict(_find_rows(file, set(prepared)))
    read = {number: read_row(found[number], config.dataset_format, config.dataset_text_field) for number in found}
    return [_build(number, prepared[number], read[number], config.train_on_prompt) for number in sorted(read)]


def _find_rows(file: Path, wanted: set[int]) -> Iterator[tuple[int, Row]]:
    last = max(wanted, default=0)
    for block in read_blocks(file):
        if block.last >= min(wanted, default=0):
            for number, row in block.read():
                if number in wanted and not isinstance(row, BrokenRow):
                    yield number, row
        if block.last >= last:
            return


def _build(number: int, prepared: dict[str, Any], row: Conversation | PlainText, train_on_prompt: bool) -> CheckedRow:
    ids, labels = list(prepared["input_ids"]), list(prepared["labels"])
    supervised = sum(label != IGNORED for label in labels)
    limit = min(max(LEAST_ANSWER, 2 * supervised), MOST_ANSWER)
    if isinstance(row, PlainText):
        has_prompt = bool(row.prompt)
        is_whole = train_on_prompt or not has_prompt
        text = row.prompt or row.completion
        return CheckedRow(number, ids, labels, [], None, text, is_whole, limit if has_prompt else 0)
    prompts = [*_list_prompts(row)]
    return CheckedRow(number, ids, labels, prompts, row.tools, None, train_on_prompt, limit if prompts else 0)


def _list_prompts(row: Conversation) -> Iterator[list[Message]]:
    """The messages before each answer; none if the first message is one, as nothing leads to it."""
    if row.messages[0]["role"] == "assistant":
        return
    messages = [name_reasoning(message) for message in row.messages]
    for place in range(max(1, row.supervised_from), len(messages)):
        if messages[place]["role"] == "assistant":
            yield messages[:place]
