"""Early stopping: it ends when nothing gets better, and the best is what remains."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sft.checkpoints.folders import is_whole
from sft.data.tokenization import PreparedData
from sft.errors import InvalidConfig
from sft.models.loading import quiet_transformers
from sft.training.session import TrainingSession
from tests.tiny_models import measure_loss

Open = Callable[..., TrainingSession]

OVERFITS: dict[str, Any] = {  # a rate at which the held-out loss falls at first, and then rises
    "learning_rate": 3e-2,
    "num_epochs": 30.0,
    "eval_steps": 3,
    "save_steps": 7,
    "save_total_limit": 1,
    "scheduler_type": "constant",
}


def run(open_session: Open, output: str, **fields: Any) -> tuple[TrainingSession, dict[str, Any], dict[int, float]]:
    losses: dict[int, float] = {}

    def on_event(name: str, values: dict[str, Any]) -> None:
        if name == "evaluate":
            losses[values["step"]] = values["eval_loss"]

    session = open_session(output, on_event=on_event, **fields)
    return session, session.train(), losses


def test_training_ends_and_the_best_is_kept(
    open_session: Open, model_path: Path, tmp_path: Path, rows: PreparedData
) -> None:
    session, result, losses = run(open_session, "out", early_stopping_patience=2, **OVERFITS)
    best = min(losses, key=lambda step: losses[step])
    assert result["stopped_early"] is True
    assert result["steps"] == best + 2 * 3 == max(losses) < 30 * 4
    assert (result["best_step"], result["best_eval_loss"]) == (best, losses[best])
    checkpoints = tmp_path / "out" / "checkpoints"
    assert is_whole(checkpoints / f"checkpoint-{best}")
    assert session.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    folder = session.save(tmp_path / "adapter")
    with quiet_transformers():
        saved = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path), folder).eval()
    assert measure_loss(saved, rows.load_eval()) == pytest.approx(losses[best], rel=1e-5)


def test_a_run_that_only_gets_better_ends_with_its_last_step(open_session: Open) -> None:
    fields = OVERFITS | {"learning_rate": 1e-4, "num_epochs": 2.0}
    session, result, losses = run(open_session, "out", early_stopping_patience=1, **fields)
    assert result["stopped_early"] is False
    assert result["best_step"] == result["steps"] == 8  # evaluated although 8 is not a multiple of eval_steps
    assert session.evaluate()["eval_loss"] == losses[8]


def test_the_best_full_model_is_restored_too(open_session: Open, tmp_path: Path, rows: PreparedData) -> None:
    fields = OVERFITS | {"use_lora": False, "learning_rate": 1e-2}
    session, result, losses = run(open_session, "out", early_stopping_patience=1, **fields)
    assert result["best_eval_loss"] == min(losses.values()) < losses[result["steps"]]
    saved = AutoModelForCausalLM.from_pretrained(session.save(tmp_path / "model")).eval()
    assert measure_loss(saved, rows.load_eval()) == pytest.approx(result["best_eval_loss"], rel=1e-5)


def test_a_resumed_run_counts_on(open_session: Open, tmp_path: Path) -> None:
    _, whole, losses = run(open_session, "whole", early_stopping_patience=2, **OVERFITS)
    best = whole["best_step"]

    def die(name: str, values: dict[str, Any]) -> None:
        if name == "checkpoint" and values["step"] > best:
            raise RuntimeError("killed")

    cut = open_session("cut", early_stopping_patience=2, on_event=die, **OVERFITS | {"save_steps": best + 4})
    with pytest.raises(RuntimeError, match="killed"):
        cut.train()
    checkpoints = {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()}
    assert checkpoints == {f"checkpoint-{best}", f"checkpoint-{best + 4}"}  # a limit of 1 does not cost the best
    _, resumed, again = run(open_session, "cut", early_stopping_patience=2, **OVERFITS)
    assert list(again) == [best + 6]
    assert again[best + 6] == pytest.approx(losses[best + 6], rel=1e-5)
    assert (resumed["best_step"], resumed["steps"]) == (best, best + 6)
    shutil.rmtree(tmp_path / "cut")


def test_without_held_out_rows_it_is_refused(open_session: Open) -> None:
    with pytest.raises(InvalidConfig, match="early_stopping_patience 2 needs held-out rows and there are none"):
        open_session(early_stopping_patience=2, eval_steps=5, validation_split=0.0)


def test_a_run_shorter_than_eval_steps_is_evaluated_at_its_end(open_session: Open) -> None:
    fields = OVERFITS | {"num_epochs": 1.0, "eval_steps": 100}
    session, result, losses = run(open_session, "out", early_stopping_patience=2, **fields)

    assert [*losses] == [session.trainer.state.max_steps]
    assert {result["best_step"]: result["best_eval_loss"]} == losses
    assert result["stopped_early"] is False
