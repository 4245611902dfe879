"""`make gpu-check` runs every method at tiny sizes on a CPU, without the service's packages, and finds a wrong loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jobs.settings import PROJECT_ROOT
from tests.bench.gpu import find_problems
from tests.bench.gpu_cases import list_cases

ABSENT = ("prefect", "mlflow", "dvc", "fastapi", "sqlalchemy")


def test_it_runs_every_method_with_nothing_but_the_engine(tmp_path: Path) -> None:
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text("raise ImportError('gpu-check needs the engine alone')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{PROJECT_ROOT}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.bench.gpu", "--tiny"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    *table, line = done.stdout.splitlines()
    found = json.loads(line)
    assert found["problems"] == []
    assert set(found["ratios"]) == {"tiny"}
    cases = list_cases(is_tiny=True)
    assert {case.name for case in cases if not case.stock} == {
        "lora",
        "lora, checkpointing",
        "lora, padded",
        "lora, packed",
        "lora, split over 2",
        "dora",
        "full",
    }
    for case in cases:
        name = f"{case.model}: {case.name}"
        values = found["cases"][name]
        assert values["tokens_per_second"] > 0
        assert 0 < values["gemm_share"] < 1
        assert values["peak_bytes"] > 0
        assert len(values["losses"]) == 3
        assert ("planned_bytes" in values) == (case.name == "lora")
        assert any(row.startswith(name) for row in table)
        wanted = "trl" if case.stock else "padded" if case.name == "lora, padded" else "documents"
        assert values["layout"] == wanted


def test_a_loss_that_is_not_stock_trls_and_a_case_that_failed_are_told() -> None:
    cases = list_cases(is_tiny=True)
    stock = {"model": "tiny", "layout": "trl", "losses": [6.0, 5.9]}
    figures = {
        "tiny: trl lora": stock,
        "tiny: lora": stock | {"layout": "documents", "losses": [6.0, 5.8]},
        "tiny: lora, checkpointing": stock | {"layout": "documents"},
        "tiny: dora": {"error": "OutOfMemoryError: too small"},
    }
    assert find_problems(figures, cases) == [
        "tiny: dora failed: OutOfMemoryError: too small",
        "tiny: lora has the loss 5.8 at step 2, stock TRL 5.9",
    ]
    figures["tiny: lora"]["losses"] = [6.0, float("nan")]
    assert "has the loss nan at step 2" in find_problems(figures, cases)[1]


def test_make_runs_it() -> None:
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/.ready", "gpu-check"]
    lines = subprocess.run(command, cwd=PROJECT_ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[-1].endswith("-m tests.bench.gpu")
