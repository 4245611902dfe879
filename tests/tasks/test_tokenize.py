"""What the tokenizing step of a job tells in its log."""

import json
import logging
from pathlib import Path

import pytest

from sft.config import SFTConfig
from sft.data.tokenization import prepare
from tasks.tokenize import report_rows
from tests.tiny_models import save_tiny_llama


def test_counts_and_the_first_invalid_rows_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"instruction": "Hi", "output": "Yo"}, *[{"instruction": n} for n in range(7)]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = SFTConfig(
        base_model="tiny",
        dataset_name="rows",
        dataset_format="alpaca",
        template_name="chatml",
        validation_split=0.0,
    )
    data = prepare(config, save_tiny_llama(tmp_path / "tiny"), tmp_path / "rows.json", tmp_path / "cache")
    with caplog.at_level(logging.INFO, logger="tasks.tokenize"):
        report_rows(data, config.max_seq_length)
    tokens = data.load_train()["length"][0]
    assert [record.getMessage() for record in caplog.records] == [
        "train: 1 of 8 rows used, 0 dropped (nothing to learn), 7 invalid, 0 left out (beyond 2048 tokens), 0 cut; "
        f"{tokens} tokens, {data.stats['train']['supervised_tokens']} supervised",  # type: ignore[index]
        *[f"train row {n + 2} left out: instruction must be text, got {n}" for n in range(5)],
        "7 of 8 rows are skipped: 7 can't be read (row 2: instruction must be text, got 0)",
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", *["WARNING"] * 6]
