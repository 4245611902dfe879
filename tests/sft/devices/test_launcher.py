"""Several processes that train one adapter, on a CPU over gloo: the same steps as one process."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sft.checkpoints.folders import is_whole
from sft.config import SFTConfig
from sft.data.tokenization import PreparedData, prepare
from sft.devices.launcher import DistributedSession, open_session
from sft.errors import InvalidConfig
from sft.models.hardware import check_devices
from sft.training.session import TrainingSession
from tests.conftest import command_line

Start = Callable[..., TrainingSession | DistributedSession]


@pytest.fixture
def start(model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: Callable[..., SFTConfig]) -> Start:
    def start_it(output: str, on_event: Any = None, **fields: Any) -> TrainingSession | DistributedSession:
        config = make_config(**fields)
        rows = prepare(config, model_path, alpaca_file, tmp_path / "cache")
        return open_session(config, rows, model_path, tmp_path / output, on_event)

    return start_it


def find_members() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "sft.devices.ddp_worker" in " ".join(command_line(child))
    ]


def test_two_processes_take_the_steps_of_one_and_end_when_told(
    start: Start, rows: PreparedData, tmp_path: Path
) -> None:
    def run(output: str, **fields: Any) -> dict[str, Any]:
        told: dict[str, Any] = {"names": [], "losses": [], "norms": []}

        def on_event(name: str, values: dict[str, Any]) -> None:
            told["names"].append(name)
            if name == "step":
                told["losses"].append(values["loss"])
                told["norms"].append(values["grad_norm"])
            if told.get("stop"):
                raise KeyboardInterrupt

        session = start(output, on_event, num_epochs=2.0, save_steps=2, **fields)
        told["eval"] = [session.evaluate()["eval_loss"]]
        told["result"] = session.train()
        told["eval"].append(session.evaluate()["eval_loss"])
        session.save(tmp_path / output / "adapter")
        measured = session.measure_rows(rows.load_eval())  # type: ignore[arg-type]  # there are some
        assert measured == {"loss": pytest.approx(told["eval"][1]), "device": "cpu", "dtype": "float32"}
        if isinstance(session, DistributedSession):
            members, told["stop"] = find_members(), True
            assert len(members) >= 2
            with pytest.raises(KeyboardInterrupt):
                session.evaluate()
            assert psutil.wait_procs(members, timeout=60)[1] == []
            told["names"].pop()
        return told

    one = run("one", batch_size=2, gradient_accumulation_steps=2)
    two = run("two", batch_size=2, num_devices=2)
    assert len(two["losses"]) == 4
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-3)
    assert two["eval"] == pytest.approx(one["eval"], rel=1e-4)
    assert two["names"] == one["names"]
    assert two["result"]["train_loss"] == pytest.approx(one["result"]["train_loss"], rel=1e-4)
    assert [two["result"][name] for name in ("steps", "tokens")] == [
        one["result"][name] for name in ("steps", "tokens")
    ]
    for output in ("one", "two"):
        assert (tmp_path / output / "checkpoints" / "checkpoint-2" / "complete.json").is_file()
        assert (tmp_path / output / "adapter" / "adapter_model.safetensors").is_file()


def test_an_error_of_one_process_ends_them_all(start: Start) -> None:
    with pytest.raises(InvalidConfig, match="lora_target_modules has no layer 'qq_proj' to adapt"):
        start("out", num_devices=2, lora_target_modules="qq_proj")
    assert find_members() == []


def test_more_devices_than_there_are_is_an_error_naming_both() -> None:
    check_devices(4, gpus=4, cores=1)
    check_devices(2, gpus=0, cores=2)
    with pytest.raises(InvalidConfig, match="num_devices is 4, but this job's worker has 1 GPU; set num_devices to 1 "):
        check_devices(4, gpus=1, cores=64)
    with pytest.raises(InvalidConfig, match="or TUNEYARD_WORKERS to the machine's GPUs divided by 4, so that"):
        check_devices(4, gpus=2, cores=64)
    with pytest.raises(InvalidConfig, match="num_devices is 4, but there is no GPU and the CPU has 2 cores"):
        check_devices(4, gpus=0, cores=2)


@pytest.mark.parametrize("batches", [{"batch_size": 1}, {"max_batch_tokens": 40}], ids=["rows", "tokens"])
def test_a_run_resumed_within_a_later_epoch_takes_the_steps_of_one_that_was_not(
    start: Start, tmp_path: Path, batches: dict[str, int]
) -> None:
    fields = {"num_devices": 2, "num_epochs": 3.0, "save_steps": 6, "lora_dropout": 0.1, **batches}

    def run() -> list[tuple[int, float]]:
        steps: list[tuple[int, float]] = []

        def on_event(name: str, values: dict[str, Any]) -> None:
            if name == "step":
                steps.append((values["step"], values["loss"]))

        session = start("out", on_event, **fields)
        assert isinstance(session, DistributedSession)
        session.train()
        adapter = session.save_adapter(tmp_path / "out" / "adapter")
        session.free_model()
        assert (session.save_merged(adapter) / "model.safetensors").is_file()  # made of files
        session.close()
        return steps

    whole = run()
    assert len(whole) == 12  # four an epoch: step 6 is in the midst of the second
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-12")
    resumed = run()
    assert [step for step, _ in resumed] == list(range(7, 13))
    assert [loss for _, loss in resumed] == pytest.approx([loss for _, loss in whole[6:]], rel=1e-5)


def test_a_run_that_is_stopped_keeps_its_last_step_and_leaves_no_process(start: Start, tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def on_event(name: str, values: dict[str, Any]) -> None:
        told.append((name, values))
        if name == "step" and values["step"] == 3:
            raise KeyboardInterrupt

    session = start("out", on_event, num_devices=2, batch_size=1, num_epochs=1000.0, save_steps=100_000)
    members = find_members()
    assert len(members) >= 2
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        session.train()
    assert time.monotonic() - begun < 90
    assert psutil.wait_procs(members, timeout=60)[1] == []

    (kept,) = (tmp_path / "out" / "checkpoints").glob("checkpoint-*")
    step = int(kept.name.removeprefix("checkpoint-"))
    assert step >= 3
    assert is_whole(kept)
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"} <= {
        path.name for path in kept.iterdir()
    }
    assert told[-1] == ("checkpoint", {"step": step, "path": str(kept)})
