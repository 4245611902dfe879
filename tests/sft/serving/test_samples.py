"""The rows of a serving check, and the prompts that a user would send for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config import SFTConfig
from sft.data.tokenization import PreparedData, prepare
from sft.errors import InvalidDataset
from sft.serving.samples import MOST_ROWS, CheckedRow, choose_rows, read_samples

Read = Callable[..., list[CheckedRow]]

SYSTEM, ASKED, TOLD, MORE, LAST = (
    {"role": role, "content": content}
    for role, content in [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "How are you?"),
        ("assistant", "Fine"),
    ]
)


@pytest.fixture
def read(
    model_path: Path, tmp_path: Path, write_rows: Callable[..., Path], make_config: Callable[..., SFTConfig]
) -> Read:
    """Prepare these rows and read samples of them."""

    def read_them(rows: list[dict[str, Any]], **fields: Any) -> list[CheckedRow]:
        config = make_config(validation_split=0.0, dataset_format="auto", template_name="chatml", **fields)
        file = write_rows(rows)
        prepared = prepare(config, model_path, file, tmp_path / "cache").load_train()
        return read_samples(choose_rows(prepared, config.max_seq_length), file, config)

    return read_them


def test_a_conversation_has_a_prompt_before_each_answer(read: Read) -> None:
    (sample,) = read([{"messages": [SYSTEM, ASKED, TOLD, MORE, LAST]}])
    assert sample.prompts == [[SYSTEM, ASKED], [SYSTEM, ASKED, TOLD, MORE]]
    assert (sample.row, sample.text, sample.is_whole, sample.answer_tokens) == (1, None, False, 64)


def test_an_answer_that_nothing_leads_to_has_no_prompt(read: Read) -> None:
    (sample,) = read([{"messages": [TOLD, MORE, LAST]}])
    assert (sample.prompts, sample.text, sample.answer_tokens) == ([], None, 0)


def test_an_alpaca_row_is_a_conversation(read: Read) -> None:
    (sample,) = read([{"instruction": "Add", "input": "1 and 2", "output": "3"}], train_on_prompt=True)
    assert sample.prompts == [[{"role": "user", "content": "Add\n1 and 2"}]]
    assert sample.is_whole


def test_plain_text_is_a_prompt_as_it_is_or_all_there_is(read: Read) -> None:
    prompted, whole = read([{"prompt": "1 + 2 =", "completion": " 3"}, {"text": "One, two, three"}])
    assert (prompted.text, prompted.is_whole, prompted.answer_tokens) == ("1 + 2 =", False, 64)
    assert (whole.text, whole.is_whole, whole.answer_tokens) == ("One, two, three", True, 0)


def test_few_short_rows_are_taken_and_none_that_was_cut(read: Read) -> None:
    rows = [{"prompt": "count", "completion": " x" * size} for size in (200, 90, 5, 60, 4, 3, 2, 40)]
    samples = read(rows, max_seq_length=64, excess_length_strategy="truncate")
    assert [sample.row for sample in samples] == [3, 5, 6, 7]
    assert len(samples) == MOST_ROWS
    assert read(rows[:1], max_seq_length=64, excess_length_strategy="truncate") == []


def test_a_file_that_is_gone_is_said(rows: PreparedData, tmp_path: Path, make_config: Callable[..., SFTConfig]) -> None:
    with pytest.raises(InvalidDataset, match=r"gone\.jsonl"):
        read_samples(rows.load_train(), tmp_path / "gone.jsonl", make_config())
