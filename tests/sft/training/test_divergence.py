"""A run that has gone wrong stops, and says at which step and with which rows."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from sft.errors import LossExploded, LossNotFinite
from sft.kernels.packing import pack_rows
from sft.training.divergence import LossGuard, check_finite
from sft.training.session import TrainingSession

Open = Callable[..., TrainingSession]


def feed(guard: LossGuard, losses: list[float]) -> None:
    for step, loss in enumerate(losses, 1):
        guard.check(loss, f"step {step} of 99", [4, 2], 0.5)


def test_a_loss_as_bad_as_guessing_for_five_steps_has_exploded() -> None:
    guard = LossGuard(vocabulary=1000)  # guessing: 6.908
    with pytest.raises(LossExploded) as error:
        feed(guard, [3.0] * 5 + [7.0] * 6)
    assert str(error.value) == (
        "the loss exploded: 7 at step 10 of 99, above 6.22 for 5 steps (it began at 3, guessing at random has 6.91); "
        "lower learning_rate (it is 0.5); the batch had rows 2, 4 of the data file"
    )
    assert error.value.code == "loss_exploded"


@pytest.mark.parametrize(
    "losses",
    [
        [3.0] * 5 + ([50.0] * 4 + [2.0]) * 10,  # hard batches
        [0.01] * 5 + [6.2] * 50,  # far above the start, but better than guessing
        [9.0] * 5 + [17.0] * 50,  # an untrained model, not twice as bad as it began
        [60.0] * 4 + [1.0] * 50,  # a bad start that ends
    ],
)
def test_what_is_hard_or_began_badly_has_not_exploded(losses: list[float]) -> None:
    feed(LossGuard(vocabulary=1000), losses)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_named_with_its_rows(value: float) -> None:
    with pytest.raises(
        LossNotFinite, match=rf"the loss became {value} at step 3.*; the batch had row 8 of the data file$"
    ):
        check_finite("loss", value, "step 3", [8], 0.1)
    with pytest.raises(LossNotFinite, match=r"rows 1, 2, .*, 20 and 10 more of the data file$"):
        check_finite("loss", value, "step 3", list(range(30, 0, -1)), 0.1)
    with pytest.raises(LossNotFinite, match=r"broken data$"):
        check_finite("loss", value, "step 3", [], 0.1)


def poison(session: TrainingSession, row: int) -> None:
    """Make the loss of any batch with this row NaN."""
    wanted = session.trainer.train_dataset["row"].index(row)
    ids = torch.tensor(session.trainer.train_dataset[wanted]["input_ids"])
    embeddings = session.trainer.model.get_input_embeddings()

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen = inputs[0].flatten().unfold(0, len(ids), 1) if inputs[0].numel() >= len(ids) else ids[None, :0]
        return output * math.nan if (seen == ids).all(dim=1).any() and seen.numel() else output

    embeddings.register_forward_hook(hook)


def test_a_nan_stops_the_run_naming_step_and_rows(open_session: Open) -> None:
    steps: list[int] = []
    session = open_session(
        validation_split=0.0,
        batch_size=2,
        gradient_accumulation_steps=2,
        on_event=lambda name, values: steps.append(values["step"]) if name == "step" else None,
    )
    if "row" not in session.trainer.train_dataset.column_names:
        numbered = session.trainer.train_dataset.add_column("row", list(range(1, 13)))
        session.trainer.train_dataset = numbered
    batches = list(session.trainer.get_train_dataloader())
    rows = batches[3]["rows"]  # the second batch of the second step
    assert len(rows) == 2
    poison(session, rows[0])
    with pytest.raises(LossNotFinite) as error:
        session.train()
    assert steps == [1]
    assert error.value.code == "loss_not_finite"
    assert str(error.value) == (
        "the loss became nan at step 2 of 3; lower learning_rate (it is 0.01) or look for broken data; "
        f"the batch had rows {min(rows)}, {max(rows)} of the data file"
    )


def test_a_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights(open_session: Open) -> None:
    session = open_session()
    next(p for p in session.trainer.model.parameters() if p.requires_grad).register_hook(lambda grad: grad * math.inf)
    with pytest.raises(LossNotFinite, match=r"the gradient became (nan|inf) at step 1 of 4"):
        session.train()
    assert all(parameter.isfinite().all() for parameter in session.trainer.model.parameters())


def test_a_learning_rate_far_too_high_is_told(open_session: Open) -> None:
    with pytest.raises(LossExploded, match=r"the loss exploded: .* lower learning_rate \(it is 1\)"):
        open_session(use_lora=False, learning_rate=1.0, num_epochs=6.0, warmup_ratio=0.0).train()


def test_packed_rows_keep_their_numbers(tmp_path: Path) -> None:
    lengths = [5, 9, 3, 12, 7, 1]
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("row", pa.int32())])
    ids = [[number] * length for number, length in enumerate(lengths, 1)]
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([ids[:4], ids[:4], [1, 2, 3, 4]], schema))
        writer.write_batch(pa.record_batch([ids[4:], ids[4:], [5, 6]], schema))
    packed = pack_rows(Dataset.from_file(str(path)), 12)
    assert sorted(number for row in packed for number in row["rows"]) == [1, 2, 3, 4, 5, 6]
    for row in packed:
        assert [lengths[number - 1] for number in row["rows"]] == row["seq_lengths"]
        expected = [number for number in row["rows"] for _ in range(lengths[number - 1])]
        assert row["input_ids"] == expected
    assert len(packed) == 4
    plain = pack_rows(Dataset.from_file(str(path)).remove_columns("row"), 12)
    assert plain["input_ids"] == packed["input_ids"]
    assert "rows" not in plain.column_names
