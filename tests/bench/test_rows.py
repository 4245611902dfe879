"""Preparing rows is measured beside the tokenizer alone and TRL's preparation, as ratios of one run."""

from pathlib import Path

from jobs.settings import Settings
from sft.data.data_files import count_rows
from tests.bench.rows import summarize, write_rows


def test_the_line_has_the_agreed_names() -> None:
    figures = {
        name: {"seconds": seconds, "cpu_seconds": 2 * seconds, "rows_per_second": 100 / seconds, "peak_gb": peak}
        for name, seconds, peak in (("ours", 12.0, 0.4), ("tokenizer", 8.0, 0.3), ("trl", 30.0, 1.0))
    }
    assert summarize(figures) == {
        "rows_per_second": 100 / 12,
        "rows_ratio_tokenizer": 1.5,
        "rows_cpu_ratio_tokenizer": 1.5,
        "rows_ratio_trl": 2.5,
        "rows_peak_gb": 0.4,
        "rows_trl_peak_gb": 1.0,
    }


def test_the_rows_are_the_same_in_each_run(tmp_path: Path, registry: str) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    settings = Settings(home=tmp_path / "home", dataset_registry=registry)
    for path in (one, other):
        write_rows(path, 50, settings)
    assert one.read_bytes() == other.read_bytes()
    assert count_rows(one) == 50
