"""How often a training step on a GPU waits for the device: counted on the CPU, where a value is read in Python."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import TrainerCallback

from sft.models.hardware import Hardware
from sft.training.session import TrainingSession
from tests.device_waits import WaitCounter
from tests.varlen_reference import register_varlen_reference


class StepEnds(TrainerCallback):  # type: ignore[misc]
    """The number of waits at the end of each step. Optimizers keep their step's number in main memory on a GPU too."""

    def __init__(self, counter: WaitCounter) -> None:
        self.counter = counter
        self.counts: list[int] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.counter.paused += 1

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.counter.paused -= 1

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.counts.append(len(self.counter.names))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"packing": True, "max_seq_length": 64},
        {"max_batch_tokens": 100},
        {"lora_dropout": 0.1, "neftune_noise_alpha": 5.0, "gradient_checkpointing": True},
        {"use_lora": False},
    ],
    ids=str,
)
def test_a_step_of_several_batches_waits_once(
    open_session: Callable[..., TrainingSession], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    register_varlen_reference()
    monkeypatch.setattr("sft.training.session.inspect_hardware", lambda: Hardware(1, 2, False))
    session = open_session(
        attn_implementation="varlen",
        gradient_accumulation_steps=2,
        max_steps=3,
        validation_split=0.0,
        logging_steps=100,
        **fields,
    )
    trainer, counter = session.trainer, WaitCounter()
    assert trainer.layout == "documents"
    # Batches are put together in main memory.
    trainer.get_batch_samples = counter.wrap(trainer.get_batch_samples, is_paused=True)
    trainer._get_num_items_in_batch = counter.wrap(trainer._get_num_items_in_batch, is_paused=False)
    ends = StepEnds(counter)
    trainer.add_callback(ends)
    with counter.counting():
        session.train()
    steps = [after - before for before, after in zip(ends.counts[:-1], ends.counts[1:], strict=True)]
    assert steps == [1, 1], counter.names
