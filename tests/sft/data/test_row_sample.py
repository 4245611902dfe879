"""A plan of a large dataset reads a sample of it."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.config import SFTConfig
from sft.data import data_stream, row_sample
from sft.data.data_files import count_rows
from sft.data.row_blocks import read_blocks
from sft.data.tokenization import prepare, prepare_sample
from sft.planning import plan
from sft.planning.plan import make_plan
from sft.planning.steps import plan_batches

MakeConfig = Callable[..., SFTConfig]
ROWS = 1000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A thousand rows in blocks of ten or so, of which forty are a sample."""
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", 500)
    monkeypatch.setattr(row_sample, "PLACES", 10)
    monkeypatch.setattr(row_sample, "SAMPLE_ROWS", 40)
    path = tmp_path / "rows.jsonl"
    rows = ({"instruction": f"Count to {n:04}", "output": "1 2 3"} for n in range(ROWS))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_sample_has_rows_from_all_over_the_file_as_the_job_sees_them(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, file: Path
) -> None:
    sample = prepare_sample(make_config(), model_path, file, tmp_path / "cache", None, ROWS)
    whole = prepare(make_config(), model_path, file, tmp_path / "cache")
    assert sample.sample is not None
    assert 40 <= sample.sample["rows"] < 80
    assert sample.sample["of"] == ROWS
    numbers = sorted([*sample.load_train()["row"], *sample.load_eval()["row"]])  # type: ignore[index]
    assert len(numbers) == sample.sample["rows"]
    assert numbers[0] == 1
    assert max(later - number for number, later in zip(numbers, [*numbers[1:], ROWS], strict=True)) < 150
    for some, all_rows in ((sample.load_train(), whole.load_train()), (sample.load_eval(), whole.load_eval())):
        assert some is not None
        assert all_rows is not None
        by_number = {row["row"]: row for row in all_rows}
        assert [by_number[row["row"]] for row in some] == list(some)  # on the same side, with the same tokens
    again = prepare_sample(make_config(), model_path, file, tmp_path / "cache", None, ROWS)
    assert (again.was_cached, again.folder) == (True, sample.folder)
    with file.open("a") as end:
        end.write(json.dumps({"instruction": "New", "output": "row"}))
    assert not prepare_sample(make_config(), model_path, file, tmp_path / "cache", None, ROWS + 1).was_cached


@pytest.mark.parametrize(
    "fields", [{"batch_size": 4}, {"max_samples": 100}, {"packing": True}, {"max_batch_tokens": 90}], ids=str
)
def test_a_plan_of_a_sample_says_so_and_counts_the_steps_of_all_rows(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, file: Path, fields: dict[str, Any]
) -> None:
    config = make_config(validation_split=0.0, **fields)
    sample = prepare_sample(config, model_path, file, tmp_path / "cache", None, ROWS)
    whole = prepare(config, model_path, file, tmp_path / "cache")
    part, full = (make_plan(config, rows, model_path, [], 10**12) for rows in (sample, whole))
    assert sample.sample is not None
    assert part["sample"] == sample.sample
    assert full["sample"] is None
    assert part["steps"] == pytest.approx(full["steps"], rel=0.05)
    assert part["batches"]["tokens_per_epoch"] == pytest.approx(full["batches"]["tokens_per_epoch"], rel=0.01)
    assert part["batches"]["mean_tokens"] == pytest.approx(full["batches"]["mean_tokens"], rel=0.05)
    told = [warning["message"] for warning in part["warnings"] if warning["code"] == "sampled"]
    assert [message.split(" rows were read")[0] for message in told] == [f"{sample.sample['rows']} of {ROWS}"]
    assert "sampled" not in [warning["code"] for warning in full["warnings"]]


def test_held_out_rows_of_another_file_are_scaled_by_their_own_number(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text("".join(file.read_text().splitlines(keepends=True)[:10]))
    config = make_config(batch_size=512)
    sample = prepare_sample(config, model_path, file, tmp_path / "cache", held_out, ROWS)
    whole = prepare(config, model_path, file, tmp_path / "cache", held_out)
    assert sample.sample is not None
    assert (sample.sample["eval_rows"], sample.sample["eval_of"]) == (10, 10)
    eval_tokens: list[int] = []
    plan_time = plan.plan_time
    monkeypatch.setattr(plan, "plan_time", lambda *args: eval_tokens.append(args[5]) or plan_time(*args))
    part, full = (make_plan(config, rows, model_path, [], 10**12)["warnings"] for rows in (sample, whole))
    assert eval_tokens[0] == eval_tokens[1]
    codes = [warning["code"] for warning in [*part, *full]]
    assert "batch_beyond_rows" not in codes  # of the sample's forty rows


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize(
    "fields", [{}, {"batch_size": 48}, {"max_batch_tokens": 4000}, {"packing": True}, {"num_devices": 2}], ids=str
)
def test_batches_of_a_sample_are_like_those_of_all_rows(
    make_config: MakeConfig, fields: dict[str, Any], is_padded: bool
) -> None:
    config = make_config(**{"batch_size": 4, "max_seq_length": 2000} | fields)
    lengths = np.random.default_rng(0).lognormal(5.5, 0.7, 20_000).clip(10, 2000).astype(np.int64)
    full = plan_batches(config, lengths, is_padded)
    part = plan_batches(config, lengths[::20], is_padded, scale=20.0)
    assert part.per_epoch == pytest.approx(full.per_epoch, rel=0.03)
    assert part.mean_tokens == pytest.approx(full.mean_tokens, rel=0.03)
    assert part.padded_tokens == pytest.approx(full.padded_tokens, rel=0.05)
    assert part.max_tokens == pytest.approx(full.max_tokens, rel=0.2)
    assert set(part.sample + part.heaviest) <= set(range(1000))


def test_a_list_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[")
        file.writelines(f'{{"text": "{"x" * 1000}"}},\n' for _ in range(50_000))
        file.write("{}]")
    tracemalloc.start()
    try:
        assert count_rows(path) == 50_001
        assert sum(len(block.read()) for block in read_blocks(path)) == 50_001
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()


def test_a_file_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"text": "{"x" * 1000}"}}\n' for _ in range(50_000))
    tracemalloc.start()
    try:
        assert count_rows(path) == 50_000
        assert sum(len(block.read()) for block in read_blocks(path)) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()


def test_rows_are_tokenized_in_memory_that_does_not_grow_with_them(
    model_path: Path, tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", 50_000)
    peaks = []
    for count in (100, 200, 1000):  # the first one loads what the others share
        path = tmp_path / f"{count}.jsonl"
        rows = ({"instruction": f"Count to {n}", "output": f"{n} " * 300} for n in range(count))
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        tracemalloc.start()
        try:
            prepared = prepare(make_config(max_seq_length=4096), model_path, path, tmp_path / "cache", processes=1)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        counts = [counts["used"] for counts in prepared.stats.values() if counts]
        assert sum(counts) == count
    assert peaks[2] < 1.5 * peaks[1] < 40e6
