"""A planned peak is near that of training, for two kinds of `python -m tests.bench.memory` with fewer layers."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.bench.memory import plan, run, train

pytestmark = pytest.mark.timeout(600)
LAYERS = 4


@pytest.mark.parametrize("kind", ["LoRA, fp32, batch 4, recomputed", "full, fp32, batch 2"])
def test_a_planned_peak_is_near_the_real_one(kind: str, tmp_path: Path) -> None:
    planned = run(plan, kind, tmp_path, LAYERS)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        real = process.submit(run, train, kind, tmp_path, LAYERS).result()
    assert planned["basis"] == "step"
    assert planned["planned_bytes"] == pytest.approx(real["real_bytes"], rel=0.15)
