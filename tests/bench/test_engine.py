"""`make bench` ends with one line of JSON: that of the training step, with the agreed names."""

import subprocess

from jobs.settings import PROJECT_ROOT
from tests.bench.engine import summarize


def test_the_line_has_the_agreed_names() -> None:
    figures = {
        name: {"tokens_per_second": speed, "gemm_share": 0.3, "peak_gb": peak}
        for name, speed, peak in (
            ("ours", 400.0, 2.5),
            ("ours_fp32", 180.0, 3.5),
            ("trl", 100.0, 5.0),
            ("trl_tuned", 50.0, 9.0),
        )
    }
    assert summarize(figures) == {
        "tokens_per_second": 400.0,
        "trl_tokens_per_second": 100.0,
        "trl_tuned_tokens_per_second": 50.0,
        "ratio": 4.0,
        "ratio_tuned": 8.0,
        "gemm_share": 0.3,
        "peak_gb": 2.5,
        "trl_peak_gb": 5.0,
    }


def test_the_step_comes_last() -> None:
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/.ready", "bench", "DATA=rows.json"]
    lines = subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[-1].endswith("-m tests.bench.engine --data rows.json")
