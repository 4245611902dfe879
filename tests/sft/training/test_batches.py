"""Batches filled up to a budget of tokens."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from sft.errors import InvalidConfig
from sft.training.batches import SharedBatches, TokenBatches
from sft.training.session import TrainingSession

Open = Callable[..., TrainingSession]

LENGTHS = [7, 30, 12, 3, 100, 18, 5, 25, 9, 14, 2, 40]


def test_no_batch_is_over_the_budget_but_a_row_that_is_alone() -> None:
    batches = list(TokenBatches(LENGTHS, 45, padded=False, seed=1))
    assert sorted(index for batch in batches for index in batch) == list(range(12))
    sizes = [sum(LENGTHS[index] for index in batch) for batch in batches]
    assert [size for size in sizes if size > 45] == [100]
    unshuffled = list(TokenBatches(LENGTHS, 45, padded=False))
    assert unshuffled == [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9, 10], [11]]


def test_padding_counts_where_rows_are_padded() -> None:
    batches = list(TokenBatches(LENGTHS, 45, padded=True, seed=1))
    assert sorted(index for batch in batches for index in batch) == list(range(12))
    for batch in batches:
        assert len(batch) * max(LENGTHS[index] for index in batch) <= 45 or batch == [4]
    assert [11] in batches  # 40 tokens leave no room
    assert max(len(batch) for batch in batches) == 3  # the short rows go together


def test_an_epoch_has_the_batches_of_every_other_in_its_own_order() -> None:
    batches = TokenBatches(LENGTHS, 45, padded=False, seed=1)
    first, again = list(batches), list(batches)
    assert again == first == list(TokenBatches(LENGTHS, 45, padded=False, seed=1))
    batches.set_epoch(1)
    second = list(batches)
    assert second != first
    assert sorted(second) == sorted(first)
    assert sorted(TokenBatches(LENGTHS, 45, padded=False, seed=2)) != sorted(first)


@pytest.mark.parametrize("multiple_of", [2, 4, 5])
def test_batches_are_split_so_that_each_process_has_as_many(multiple_of: int) -> None:
    batches = list(TokenBatches(LENGTHS, 45, padded=False, seed=1, multiple_of=multiple_of))
    assert len(batches) % multiple_of == 0
    assert sorted(index for batch in batches for index in batch) == list(range(12))
    alone = list(TokenBatches([50, 60, 70], 45, padded=False, multiple_of=2))
    assert alone == [[0], [1], [2], [0]]


@pytest.mark.parametrize(("rows", "batch_size", "processes"), [(24, 3, 2), (9, 2, 2), (22, 3, 4), (8, 2, 3)])
def test_processes_share_the_rows_and_no_row_is_seen_twice(rows: int, batch_size: int, processes: int) -> None:
    batches = SharedBatches(SeedableRandomSampler(range(rows), data_seed=1), batch_size, processes)
    first = list(batches)
    assert len(first) == len(batches)
    assert len(first) % processes == 0
    assert all(1 <= len(batch) <= batch_size for batch in first)
    seen = [index for batch in first for index in batch]
    assert set(seen) == set(range(rows))
    left_over = rows % (batch_size * processes)
    assert len(seen) == rows + (max(0, processes - left_over) if left_over else 0)
    batches.set_epoch(0)
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first


def test_training_takes_batches_of_at_most_so_many_tokens(open_session: Open) -> None:
    session = open_session(max_batch_tokens=120, num_epochs=3.0, validation_split=0.0)
    lengths = session.trainer.train_dataset["length"]
    sizes = [batch["input_ids"].shape for batch in session.trainer.get_train_dataloader()]
    assert all(rows == 1 and tokens <= 120 for rows, tokens in sizes)
    assert sum(tokens for _, tokens in sizes) == sum(lengths)
    assert len(sizes) < len(lengths) / 2 + 1
    result = session.train()
    assert result["steps"] == 3 * len(sizes)
    assert result["tokens"] == 3 * sum(lengths)


def test_held_out_rows_have_the_same_loss_whatever_the_batches(open_session: Open) -> None:
    by_rows, by_tokens = open_session("rows"), open_session("tokens", max_batch_tokens=60)
    assert by_tokens.evaluate()["eval_loss"] == pytest.approx(by_rows.evaluate()["eval_loss"], rel=1e-6)


def test_accumulated_batches_weigh_by_tokens_as_one_large_batch(open_session: Open) -> None:
    """All rows in one batch, and all rows in several of different sizes: the same step."""
    fields: dict[str, Any] = {"validation_split": 0.0, "max_steps": 2, "warmup_ratio": 0.0}
    large = open_session("large", max_batch_tokens=100_000, **fields)
    pieces = len(list(open_session("count", max_batch_tokens=90, **fields).trainer.get_train_dataloader()))
    assert pieces > 2
    small = open_session("small", max_batch_tokens=90, gradient_accumulation_steps=pieces, **fields)
    assert small.train()["train_loss"] == pytest.approx(large.train()["train_loss"], rel=1e-5)
    for mine, reference in zip(small.trainer.model.parameters(), large.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=2e-4)


def test_a_resumed_run_goes_on_with_the_batches_it_has_not_seen(open_session: Open) -> None:
    def run(output: str, stop_after: int | None = None) -> tuple[TrainingSession, list[float]]:
        losses: list[float] = []

        def on_event(name: str, values: dict[str, Any]) -> None:
            if name == "step":
                losses.append(values["loss"])
            if name == "checkpoint" and values["step"] == stop_after:
                raise RuntimeError("killed")

        fields: dict[str, Any] = {"max_batch_tokens": 90, "num_epochs": 3.0, "save_steps": 1, "lora_dropout": 0.1}
        session = open_session(output, on_event=on_event, **fields)
        if stop_after is None:
            session.train()
        else:
            with pytest.raises(RuntimeError, match="killed"):
                session.train()
        return session, losses

    whole, expected = run("whole")
    stop_after = len(expected) // 2 + 1  # in the second epoch
    assert stop_after % (len(expected) // 3) != 0
    run("cut", stop_after)
    resumed, losses = run("cut")
    assert losses == expected[stop_after:]
    for mine, reference in zip(resumed.trainer.model.parameters(), whole.trainer.model.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_packing_and_a_token_budget_do_not_go_together(open_session: Open, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="max_batch_tokens does not go with packing"):
        open_session(max_batch_tokens=100, packing=True)


def test_rows_beyond_the_budget_are_among_the_warnings(open_session: Open) -> None:
    longest = max(open_session("plain").trainer.train_dataset["length"])
    warnings = open_session("small", max_batch_tokens=longest - 1).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith(f"1 rows are longer than max_batch_tokens {longest - 1} and each is a batch alone")
    assert open_session("enough", max_batch_tokens=longest).warnings == []


def test_a_job_start_does_not_copy_all_token_ids(open_session: Open, write_rows: Any) -> None:
    rows = [{"instruction": f"Count {n}.", "output": " ".join(str(i) for i in range(30))} for n in range(3000)]
    data = write_rows(rows)
    open_session("first", data=data, max_steps=1)  # tokenizes them
    tracemalloc.start()
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        session = open_session("second", data=data, max_steps=1)
        next(iter(session.trainer.get_train_dataloader()))
        ids_bytes = 4 * sum(session.trainer.train_dataset["length"])
        python_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        pa.set_memory_pool(usual)
        tracemalloc.stop()
    assert ids_bytes > 500_000
    assert (pool.max_memory() or 0) < ids_bytes / 2
    assert python_bytes < 20 * ids_bytes  # a list of Python's numbers takes 36 bytes for each of 4
