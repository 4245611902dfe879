"""A job that would learn nothing, or has learned nothing, says so instead of completing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sft.config import count_warmup_steps
from sft.errors import InvalidConfig, NothingLearned
from sft.training.learning import LearningCheck
from sft.training.session import TrainingSession

Open = Callable[..., TrainingSession]


def count_moved(session: TrainingSession) -> int:
    """Adapted layers whose B is not zero."""
    return sum(bool(weight.any()) for name, weight in session.trainer.model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 4, "gradient_accumulation_steps": 4},  # the defaults: one step
        {"max_steps": 1},
        {"max_steps": 1, "scheduler_type": "constant"},
        {"max_steps": 1, "scheduler_type": "linear", "warmup_ratio": 0.99},
        {"max_steps": 2, "warmup_ratio": 0.99},
        {"gradient_accumulation_steps": 500},
        {"max_steps": 1, "use_dora": True},
        {"max_steps": 1, "packing": True},
        {"num_epochs": 0.1},
    ],
    ids=str,
)
def test_the_fewest_steps_learn(open_session: Open, fields: dict[str, Any]) -> None:
    rates: list[float] = []
    session = open_session(
        **fields,
        validation_split=0.0,
        on_event=lambda name, values: rates.append(values["learning_rate"]) if name == "step" else None,
    )
    session.train()
    assert max(rates) > 0
    assert count_moved(session) == 2 * 7
    assert session.warnings == []


@pytest.mark.parametrize(
    ("steps", "ratio", "expected"),
    [(1, 0.03, 0), (1, 0.999, 0), (2, 0.999, 1), (33, 0.03, 0), (34, 0.03, 1), (100, 0.29, 29), (1000, 0.0, 0)],
)
def test_warmup_is_rounded_down_and_leaves_a_step(steps: int, ratio: float, expected: int) -> None:
    assert count_warmup_steps(steps, ratio) == expected


def test_steps_without_a_learning_rate_are_refused_before_the_first() -> None:
    scheduler = SimpleNamespace(lr_lambdas=[lambda step: 0.0])
    with pytest.raises(InvalidConfig, match="each of the 3 optimizer steps would have a learning rate of 0"):
        LearningCheck().on_train_begin(None, SimpleNamespace(global_step=0, max_steps=3), None, lr_scheduler=scheduler)


@pytest.mark.parametrize(
    "fields", [{}, {"use_dora": True}, {"use_lora": False}, {"gradient_checkpointing": True}], ids=str
)
def test_a_run_without_a_gradient_has_learned_nothing(open_session: Open, fields: dict[str, Any]) -> None:
    session = open_session(**fields, max_steps=2)
    for weight in session.trainer.model.parameters():
        if weight.requires_grad:
            weight.register_hook(torch.zeros_like)
    with pytest.raises(NothingLearned, match="after 2 optimizer steps the model answers as before; the gradient was 0"):
        session.train()


def test_an_adapter_gone_on_from_must_change_too(open_session: Open, tmp_path: Path) -> None:
    first = open_session(max_steps=2)
    first.train()
    adapter = first.save(tmp_path / "adapter")
    second = open_session("second", adapter_path=str(adapter), max_steps=1)
    for weight in second.trainer.model.parameters():
        if weight.requires_grad:
            weight.register_hook(torch.zeros_like)
    with pytest.raises(NothingLearned):
        second.train()
    open_session("third", adapter_path=str(adapter), max_steps=1).train()


def test_layers_that_no_row_reaches_are_named(open_session: Open) -> None:
    session = open_session(max_steps=2)
    for name, weight in session.trainer.model.named_parameters():
        if weight.requires_grad and ".layers.1.mlp.up_proj." in name:
            weight.register_hook(torch.zeros_like)
    session.train()
    assert session.warnings == [
        "1 of 14 adapted layers have learned nothing, model.layers.1.mlp.up_proj for one: no row gave them a gradient; "
        "name the layers to adapt with lora_target_modules"
    ]


def test_a_run_resumed_after_its_last_step_still_counts(open_session: Open) -> None:
    open_session("same", max_steps=2, save_steps=2).train()
    resumed = open_session("same", max_steps=2, save_steps=2)
    assert resumed.train()["steps"] == 2
    assert count_moved(resumed) == 2 * 7


@pytest.mark.parametrize(
    ("fields", "is_said"),
    [
        ({"optimizer_type": "sgd", "learning_rate": 1e-9}, True),
        ({"learning_rate": 1e-12}, True),
        ({"optimizer_type": "sgd", "learning_rate": 1e-9, "use_dora": True}, True),
        ({"use_lora": False, "learning_rate": 1e-10}, True),
        ({"max_steps": 1, "learning_rate": 1e-5}, False),
        ({"use_lora": False, "learning_rate": 1e-6}, False),
    ],
    ids=str,
)
def test_a_run_that_moves_next_to_nothing_says_so(open_session: Open, fields: dict[str, Any], is_said: bool) -> None:
    session = open_session(**{"max_steps": 2, "warmup_ratio": 0.0, "scheduler_type": "constant"} | fields)
    try:
        session.train()
    except NothingLearned:  # full fine-tuning, whose weights round it away
        assert is_said
        return
    told = [warning for warning in session.warnings if warning.startswith("training has changed next to nothing")]
    assert len(told) == is_said
    assert all("raise learning_rate" in warning for warning in told)


def test_an_adapter_gone_on_from_that_hardly_moves_says_so(open_session: Open, tmp_path: Path) -> None:
    first = open_session(max_steps=2)
    first.train()
    adapter = str(first.save(tmp_path / "adapter"))
    for name, rate, is_said in (("slow", 1e-10, True), ("usual", 1e-4, False)):
        session = open_session(
            name, adapter_path=adapter, max_steps=2, optimizer_type="adamw_torch", learning_rate=rate
        )
        try:
            session.train()
            assert any("next to nothing" in warning for warning in session.warnings) == is_said
        except NothingLearned:
            assert is_said
