"""Training on several datasets: the loss on each one's held-out rows, and messages that name the dataset."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sft.config import SFTConfig
from sft.data.mixing import MixedData, MixedPart
from sft.data.tokenization import prepare
from sft.errors import LossNotFinite
from sft.models.loading import quiet_transformers
from sft.training.session import TrainingSession
from tests.tiny_models import measure_loss

Open = Callable[..., TrainingSession]
Files = list[tuple[str, float | None, int]]
HOLDING_OUT: Files = [("sums", 0.5, 24), ("colours", 2.0, 12)]
VALIDATED: Files = [("sums", 1.0, 8), ("colours", 2.0, 4), ("held", None, 5), ("other", None, 7)]


@pytest.fixture
def open_mix(
    write_rows: Callable[..., Path], make_config: Callable[..., SFTConfig], model_path: Path, tmp_path: Path
) -> Open:
    """A session over files of different rows; without a weight a file is evaluated on."""

    def open_it(files: Files, on_event: Any = None, **fields: Any) -> TrainingSession:
        is_validated = any(weight is None for _, weight, _ in files)
        config = make_config(**({"validation_split": 0.0} if is_validated else {}) | fields)
        parts = []
        for name, weight, count in files:
            rows = [{"instruction": f"{name} {n}", "output": f"{name} " * (n % 5 + 1)} for n in range(count)]
            path = write_rows(rows, f"{name}.json")
            parts.append(MixedPart(name, name, weight, prepare(config, model_path, path, tmp_path / "cache")))
        mixed = MixedData(parts, config.seed)
        session = TrainingSession(config, mixed, model_path, tmp_path / "out", on_event)
        session.mixed = mixed  # type: ignore[attr-defined]  # for the test
        return session

    return open_it


@pytest.mark.parametrize("files", [HOLDING_OUT, VALIDATED])
@pytest.mark.parametrize("fields", [{}, {"packing": True}, {"max_batch_tokens": 60}])
def test_each_datasets_loss_is_that_of_the_saved_adapter(
    open_mix: Open, model_path: Path, tmp_path: Path, files: Files, fields: dict[str, Any]
) -> None:
    events: list[dict[str, Any]] = []
    session = open_mix(
        files, lambda name, values: events.append(values) if name == "evaluate" else None, eval_steps=1, **fields
    )
    session.train()
    metrics = session.evaluate()
    folder = session.save(tmp_path / "adapter")
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path), folder).eval()
    parts = session.mixed.load_eval_parts()  # type: ignore[attr-defined]
    labels = [name for name, weight, _ in files if weight is None] or [name for name, _, _ in files]

    assert [*parts] == labels
    for label, rows in parts.items():
        assert metrics[f"eval_loss/{label}"] == pytest.approx(measure_loss(adapted, rows), rel=1e-4)
    whole = session.mixed.load_eval()  # type: ignore[attr-defined]
    assert metrics["eval_loss"] == pytest.approx(measure_loss(adapted, whole), rel=1e-4)
    assert metrics["eval_loss/" + labels[0]] != pytest.approx(metrics["eval_loss/" + labels[1]], rel=1e-3)
    names = {"eval_loss", *(f"eval_loss/{label}" for label in labels)}
    assert all(names <= set(event) for event in events)
    assert any(event["step"] == 1 for event in events)


def test_an_epoch_has_the_rows_of_the_weights(open_mix: Open) -> None:
    session = open_mix(VALIDATED, num_epochs=2.0)
    result = session.train()
    assert len(session.trainer.train_dataset) == 8 + 2 * 4
    assert result["steps"] == 2 * math.ceil(16 / 2)
    assert result["tokens"] == 2 * sum(session.trainer.train_dataset["length"])


def test_the_mean_over_all_held_out_rows_is_the_same_without_parts(open_mix: Open) -> None:
    session = open_mix(HOLDING_OUT)
    apart = session.evaluate()["eval_loss"]
    session.trainer.eval_parts = {}
    together = session.evaluate()
    assert together["eval_loss"] == pytest.approx(apart, rel=1e-6)
    assert not [name for name in together if "/" in name]


def test_a_loss_that_is_not_finite_names_the_row_and_its_dataset(open_mix: Open, monkeypatch: Any) -> None:
    session = open_mix([("sums", 1.0, 2), ("held", None, 2)], batch_size=2)
    loss = torch.tensor(math.nan, requires_grad=True)
    monkeypatch.setattr(session.trainer, "compute_loss", lambda *_, **__: loss * 1)
    with pytest.raises(LossNotFinite, match=r"; the batch had rows 1 of sums, 2 of sums$"):
        session.train()
