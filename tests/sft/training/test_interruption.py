"""A run that a signal stops keeps its work up to the last whole step, wherever in a step the signal comes."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sft.checkpoints.folders import find_newest_checkpoint, is_whole
from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.training.session import TrainingSession

MakeConfig = Callable[..., SFTConfig]
Open = Callable[..., TrainingSession]


class Stopped(BaseException):
    """What the handler of SIGTERM raises, as Prefect's does."""


class Stop(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Sends this process SIGTERM as step 3 reaches this place."""

    def __init__(self, place: str) -> None:
        setattr(self, place, self._send)

    def _send(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 2:  # counted once the step is whole
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def stopped_by_sigterm() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise Stopped

    former = signal.signal(signal.SIGTERM, stop)
    yield
    assert signal.getsignal(signal.SIGTERM) is stop
    signal.signal(signal.SIGTERM, former)


@pytest.fixture
def open_session(model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: MakeConfig) -> Open:
    """A session of eight steps over the twelve rows; a second one in the same folder goes on from the first."""

    def open_it(output: str, on_event: Any = None, **fields: Any) -> TrainingSession:
        config = make_config(num_epochs=2.0, **fields)
        data = prepare(config, model_path, alpaca_file, tmp_path / "cache")
        return TrainingSession(config, data, model_path, tmp_path / output, on_event)

    return open_it


@pytest.mark.parametrize(
    ("place", "kept"),
    [("on_step_begin", 2), ("on_substep_end", 2), ("on_pre_optimizer_step", 3), ("on_optimizer_step", 3)],
)
@pytest.mark.usefixtures("stopped_by_sigterm")
def test_the_last_whole_step_is_kept_and_training_goes_on_from_it(open_session: Open, place: str, kept: int) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    fields = {"gradient_accumulation_steps": 2, "batch_size": 1}
    session = open_session("cut", lambda name, values: events.append((name, values)), **fields)
    session.trainer.add_callback(Stop(place))
    with pytest.raises(Stopped):
        session.train()

    checkpoint = session.checkpoint_dir / f"checkpoint-{kept}"
    assert find_newest_checkpoint(session.checkpoint_dir) == checkpoint
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert events[-1] == ("checkpoint", {"step": kept, "path": str(checkpoint)})

    resumed, whole = open_session("cut", **fields), open_session("whole", **fields)
    assert resumed.train()["steps"] == whole.train()["steps"] > kept
    for mine, reference in zip(resumed.trainer.model.parameters(), whole.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("stopped_by_sigterm")
def test_a_step_that_has_its_checkpoint_is_not_saved_again(open_session: Open) -> None:
    events: list[str] = []
    session = open_session("cut", lambda name, _: events.append(name), save_steps=2)
    session.trainer.add_callback(Stop("on_step_begin"))
    with pytest.raises(Stopped):
        session.train()

    assert is_whole(session.checkpoint_dir / "checkpoint-2")
    assert events.count("checkpoint") == 1


@pytest.mark.usefixtures("stopped_by_sigterm")
def test_what_keeps_the_work_from_being_saved_does_not_keep_the_run_from_stopping(
    open_session: Open, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_session("cut")
    session.trainer.add_callback(Stop("on_step_begin"))
    session.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    (session.checkpoint_dir / "checkpoint-2").write_text("in the way")
    with pytest.raises(Stopped):
        session.train()

    assert "The work since the last checkpoint is lost: step 2 can't be saved" in caplog.text


def test_a_run_that_fails_saves_nothing(open_session: Open) -> None:
    class Fail(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise RuntimeError("out of memory")

    session, former = open_session("failed"), signal.getsignal(signal.SIGTERM)
    session.trainer.add_callback(Fail())
    with pytest.raises(RuntimeError, match="out of memory"):
        session.train()

    assert find_newest_checkpoint(session.checkpoint_dir) is None
    assert signal.getsignal(signal.SIGTERM) is former
