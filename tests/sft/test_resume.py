"""A run that is cut off, anywhere, ends with the very adapter it would have had."""

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from sft.checkpoints.folders import find_newest_checkpoint, list_checkpoints
from sft.config import SFTConfig
from sft.data.mixing import MixedData, MixedPart
from sft.data.tokenization import PreparedData, prepare
from sft.training.session import TrainingSession
from tests.sft.child import start_child, wait_for_child
from tests.tiny_models import save_tiny_model

Open = Callable[..., TrainingSession]
STEPS = 12
PLACES = ("on_substep_end", "on_pre_optimizer_step", "on_step_begin", "on_step_end")
VARIANTS: dict[str, dict[str, Any]] = {
    "rows": {},
    "tokens": {"max_batch_tokens": 40},
    "packing": {"packing": True, "max_seq_length": 48},
    "noise": {"neftune_noise_alpha": 5.0},
    "padded": {},  # a model whose batches are padded, and so grouped by length
    "part of an epoch": {"num_epochs": 2.6},
    "mixed": {},  # half of one file's rows, and those of another twice
    "stopping": {"eval_steps": 2, "early_stopping_patience": 3, "learning_rate": 5e-2},
}


class Stopped(BaseException):
    """What the handler of SIGTERM raises, as Prefect's does."""


class Send(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Sends this process a signal where training has come to this place of this step."""

    def __init__(self, number: int, step: int, place: str) -> None:
        self.number, self.step = number, step
        setattr(self, place, self._send)

    def _send(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def stopped_by_sigterm() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise Stopped

    former = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, former)


@pytest.fixture
def open_run(
    tmp_path: Path, model_path: Path, write_rows: Callable[..., Path], make_config: Callable[..., SFTConfig]
) -> Open:
    """A session of twelve steps over eight rows, with dropout; in a folder of its own by `output`."""
    numbers = [" ".join(str(i) for i in range(n + 1)) for n in range(14)]  # 8 to learn from
    data = write_rows([{"instruction": f"Count to {n}.", "output": output} for n, output in enumerate(numbers)])
    other = write_rows([{"instruction": "Say it.", "output": f"It is {n}."} for n in range(3)], "other.json")

    def open_it(output: str, variant: str = "rows", on_event: Any = None, **fields: Any) -> TrainingSession:
        settings = {"num_epochs": 3.0, "batch_size": 1, "gradient_accumulation_steps": 2, "lora_dropout": 0.2}
        settings |= {"validation_split": 0.25, "save_steps": 100} | VARIANTS[variant] | fields
        config = make_config(**settings)
        model = save_tiny_model("gpt2", tmp_path / "gpt2") if variant == "padded" else model_path
        rows = prepare(config, model, data, tmp_path / "cache")
        if variant == "mixed":
            rows = mix(config, rows, prepare(config, model, other, tmp_path / "cache"))
        return TrainingSession(config, rows, model, tmp_path / output, on_event)

    return open_it


def mix(config: SFTConfig, one: PreparedData, other: PreparedData) -> MixedData:
    """Eight rows of two datasets."""
    used = [part.stats["train"]["used"] for part in (one, other)]
    parts = [MixedPart("one", "one", 4 / used[0], one), MixedPart("other", "other", 4 / used[1], other)]
    return MixedData(parts, config.seed)


def finish(session: TrainingSession) -> tuple[str, dict[str, Any]]:
    """Train to the end; the hash of the saved adapter's weights, and the result."""
    result = session.train()
    log = session.trainer.state.log_history
    result["evaluations"] = [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]
    folder = session.save(session.checkpoint_dir.parent / "adapter")
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(), result


def cut(session: TrainingSession, step: int, place: str) -> None:
    """Stop the run so that this step is its last."""
    counted = step - 1 if place == "on_pre_optimizer_step" else step  # that one is still made whole
    session.trainer.add_callback(Send(signal.SIGTERM, counted, place))
    with pytest.raises(Stopped):
        session.train()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_adapter(open_run: Open, variant: str) -> None:
    whole, result = finish(open_run("whole", variant))
    steps = range(1, STEPS) if variant == "rows" else (2, 5, 8)
    assert result["steps"] == STEPS or variant != "rows"
    assert result["steps"] > max(steps)
    for step in steps:
        place = PLACES[step % len(PLACES)]
        if variant == "stopping":  # after an evaluation, or with one that was due and did not come
            place = "on_evaluate" if step == 8 else "on_step_end"
        session = open_run("cut", variant)
        cut(session, step, place)
        newest = find_newest_checkpoint(session.checkpoint_dir)
        assert newest is not None
        assert newest.name == f"checkpoint-{step}"
    again, resumed = finish(open_run("cut", variant))
    assert again == whole
    for name in ("steps", "best_step", "best_eval_loss", "stopped_early", "evaluations"):
        assert resumed.get(name) == result.get(name)


def test_a_run_that_is_killed_after_any_step_ends_with_the_same_adapter(open_run: Open) -> None:
    whole, result = finish(open_run("whole", save_steps=1))
    assert result["steps"] == STEPS
    for step in (1, 4, 7, 11):
        session = open_run("killed", save_steps=1)
        session.trainer.add_callback(Send(signal.SIGKILL, step, "on_substep_end"))
        assert wait_for_child(start_child(session.train)) == -signal.SIGKILL
        newest = find_newest_checkpoint(session.checkpoint_dir)
        assert newest is not None
        assert newest.name == f"checkpoint-{step}"
    assert finish(open_run("killed", save_steps=1))[0] == whole


@pytest.mark.parametrize("variant", ["rows", "mixed"])
def test_a_run_that_is_killed_between_checkpoints_takes_the_lost_steps_again(open_run: Open, variant: str) -> None:
    """Of several datasets too, whose rows are chosen and mixed anew in each process."""
    whole, result = finish(open_run("whole", variant, save_steps=3))
    assert result["steps"] == STEPS
    for step, saved in ((5, 3), (10, 9)):
        session = open_run("killed", variant, save_steps=3)
        session.trainer.add_callback(Send(signal.SIGKILL, step, "on_substep_end"))
        assert wait_for_child(start_child(session.train)) == -signal.SIGKILL
        newest = find_newest_checkpoint(session.checkpoint_dir)
        assert newest is not None
        assert newest.name == f"checkpoint-{saved}"
    again, resumed = finish(open_run("killed", variant, save_steps=3))
    assert (again, resumed["evaluations"]) == (whole, result["evaluations"])


def test_epochs_go_on_from_where_a_resumed_run_was(open_run: Open) -> None:
    def follow(told: dict[int, float]) -> Any:
        return lambda name, values: told.update({values["step"]: values["epoch"]}) if name == "step" else None

    whole: dict[int, float] = {}
    resumed: dict[int, float] = {}
    open_run("whole", max_steps=6, on_event=follow(whole)).train()
    cut(open_run("cut", max_steps=6, on_event=follow(resumed)), 3, "on_step_end")
    assert list(resumed) == [1, 2, 3]
    open_run("cut", max_steps=6, on_event=follow(resumed)).train()
    assert resumed == whole
    assert list(whole.values()) == sorted(whole.values())
    assert whole[6] == 1.5


def test_a_run_that_is_killed_after_its_last_step_takes_no_step_more(open_run: Open) -> None:
    whole, _ = finish(open_run("whole", max_steps=6))  # in the midst of an epoch
    events: list[str] = []
    again, result = finish(open_run("whole", max_steps=6, on_event=lambda name, _: events.append(name)))
    assert (again, result["steps"], events.count("step")) == (whole, 6, 0)


def test_a_run_whose_patience_was_at_its_end_takes_no_step_more(open_run: Open) -> None:
    fields = {"early_stopping_patience": 1, "learning_rate": 0.3, "num_epochs": 9.0, "save_steps": 1}
    whole, result = finish(open_run("whole", "stopping", **fields))
    assert result["stopped_early"]
    events: list[str] = []
    session = open_run("whole", "stopping", on_event=lambda name, _: events.append(name), **fields)
    again, resumed = finish(session)
    assert (again, resumed["best_step"], events.count("step")) == (whole, result["best_step"], 0)


def test_without_its_best_checkpoint_a_run_goes_back_to_before_it(
    open_run: Open, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"save_steps": 1, "save_total_limit": 20}
    whole, result = finish(open_run("whole", "stopping", **fields))
    folder = open_run("whole", "stopping", **fields).checkpoint_dir
    best = folder / f"checkpoint-{result['best_step']}"
    damage(best / "adapter_model.safetensors")
    again, resumed = finish(open_run("whole", "stopping", **fields))
    assert (again, resumed["best_step"], resumed["steps"]) == (whole, result["best_step"], result["steps"])
    assert f"Skipped checkpoint {best}: adapter_model.safetensors is not what was written" in caplog.text
    assert all(find_newest_checkpoint(folder) == path for path in list_checkpoints(folder)[:1])


def damage(file: Path) -> None:
    """Flip one bit in its midst."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
