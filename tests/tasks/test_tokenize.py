"""What the tokenizing step of a job tells, and what a plan reads."""

import json
import logging
from pathlib import Path

import pytest

from jobs.settings import Settings
from sft.config import SFTConfig
from sft.data.tokenization import prepare
from tasks.dataset_version import DatasetVersion
from tasks.tokenize import RowsProgress, prepare_for_plan, report_rows
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


def test_progress_is_told_with_the_time_that_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([100.0, 105.0, 110.0, 115.0, 120.0])
    monkeypatch.setattr("tasks.tokenize.time.monotonic", lambda: next(now))
    shown: list[str] = []
    progress = RowsProgress(1000, shown.append)
    with caplog.at_level(logging.INFO, logger="tasks.tokenize"):
        for rows in (500, 510, 520, 600):  # 500 were tokenized by an earlier attempt
            progress(rows)
    assert shown == ["tokenizing (51%)", "tokenizing (60%)"]
    assert [record.getMessage() for record in caplog.records] == [
        "Tokenized 510 of 1000 rows (51%), 1 rows/s, 490 s left",
        "Tokenized 600 of 1000 rows (60%), 5 rows/s, 80 s left",
    ]


def test_a_plan_reads_a_sample_of_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"instruction": f"Hi {n}", "output": "Yo"} for n in range(30)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = SFTConfig(base_model="tiny", dataset_name="rows", dataset_format="alpaca", template_name="chatml")
    dataset = DatasetVersion("rows", None, None, "0" * 32, tmp_path / "rows.json", None, 30, "file", "file://")
    model, settings = save_tiny_llama(tmp_path / "tiny"), Settings(home=tmp_path / "home")
    assert prepare_for_plan(config, model, dataset, settings).sample is None
    monkeypatch.setattr("tasks.tokenize.MOST_PLANNED_ROWS", 29)
    assert prepare_for_plan(config, model, dataset, settings).sample == {
        "rows": 30,
        "of": 30,
        "eval_rows": 0,
        "eval_of": 0,
    }
