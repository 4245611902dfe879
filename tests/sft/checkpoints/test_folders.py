"""Checkpoints: whole or not there, known by their content, kept as long as they are needed, harmless to load."""

import errno
import itertools
import os
import pickle
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from sft.checkpoints.folders import (
    MANIFEST,
    STAGE,
    find_damage,
    find_newest_checkpoint,
    is_complete,
    is_whole,
    list_checkpoints,
    publish_checkpoint,
    seal_checkpoint,
    stage_checkpoint,
)
from sft.data.tokenization import PreparedData
from sft.devices.launcher import open_session as open_on_devices
from sft.errors import CheckpointUnusable, DiskFull, find_error
from sft.files.disk import raising_disk_full
from sft.training.session import TrainingSession
from tests.sft.child import kill_child, start_child

Open = Callable[..., TrainingSession]
KILLS, SEED = 50, 5


@pytest.fixture
def checkpoints(open_session: Open) -> Path:
    """The folder of a run's checkpoints, of its steps 2 and 4."""
    session = open_session(save_steps=2, max_steps=4)
    session.train()
    return session.checkpoint_dir


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1 << int(8 * at) % 8
    file.write_bytes(content)


def truncate(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 1)


def duplicate(file: Path) -> None:
    shutil.copy(file, file.with_name(f"{file.name}.bak"))


def link(file: Path) -> None:
    elsewhere = file.parent.parent.parent / file.name
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "emptied": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
    "renamed": lambda file: file.rename(file.with_name(f"{file.name}2")),
    "replaced by a link": link,
    "with another beside it": duplicate,
    "first bit": lambda file: flip(file, 0.0),
    "a bit in the midst": lambda file: flip(file, 0.5),
    "last bit": lambda file: flip(file, 1.0),
}


def test_damage_to_any_file_is_detected_and_the_one_before_is_taken(checkpoints: Path) -> None:
    newest, former = list_checkpoints(checkpoints)
    names = sorted(path.name for path in newest.iterdir())
    assert {MANIFEST, "adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"} < set(names)
    pristine = checkpoints.parent / "pristine"
    shutil.copytree(newest, pristine)
    for name, kind in itertools.product(names, DAMAGES):
        DAMAGES[kind](newest / name)
        assert find_damage(newest), (name, kind)
        assert find_newest_checkpoint(checkpoints) == former, (name, kind)
        shutil.rmtree(newest)
        shutil.copytree(pristine, newest)
        assert find_newest_checkpoint(checkpoints) == newest


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "a.bin").write_bytes(b"content")
    seal_checkpoint(folder)
    assert is_whole(folder)
    text = (folder / MANIFEST).read_bytes()
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        (folder / MANIFEST).write_bytes(changed)
        assert not is_whole(folder), changed
    (folder / MANIFEST).write_bytes(text)
    (folder / "empty").mkdir()
    assert find_damage(folder) == "missing or not part of it: empty"


def test_a_quick_look_sees_sizes_and_a_thorough_one_contents(checkpoints: Path) -> None:
    newest = list_checkpoints(checkpoints)[0]
    flip(newest / "optimizer.pt", 0.5)
    assert is_complete(newest)
    assert not is_whole(newest)


def test_what_a_cut_off_save_left_is_no_checkpoint_and_goes_at_the_next_start(open_session: Open) -> None:
    session = open_session(save_steps=2, max_steps=4)
    left = stage_checkpoint(session.checkpoint_dir, 9)
    (left / "adapter_model.safetensors").write_bytes(b"half of it")
    assert list_checkpoints(session.checkpoint_dir) == []
    session.train()
    assert sorted(path.name for path in session.checkpoint_dir.iterdir()) == ["checkpoint-2", "checkpoint-4"]


# -- killed while saving


def test_a_save_killed_at_any_moment_leaves_a_checkpoint_to_resume_from(open_session: Open) -> None:
    generator = random.Random(SEED)  # noqa: S311  # moments, no secrets
    session = open_session(save_steps=1, max_steps=1, save_total_limit=2)
    session.train()
    directory, state = session.checkpoint_dir, session.trainer.state

    def save_again_and_again() -> None:
        while True:
            state.global_step += 1
            session.trainer._save_checkpoint(session.trainer.model, None)

    def measure_save() -> float:
        started_at = time.monotonic()
        session.trainer._save_checkpoint(session.trainer.model, None)
        return time.monotonic() - started_at

    seconds = min(measure_save() for _ in range(3))
    cut_off, kills, steps = 0, 0, [1]
    while kills < KILLS or cut_off <= KILLS // 2:  # half of them are hit in the midst of a save
        kills += 1
        assert kills < 3 * KILLS
        child = start_child(save_again_and_again)
        time.sleep(generator.uniform(0, 4 * seconds))
        assert kill_child(child) == -signal.SIGKILL
        cut_off += (directory / STAGE).exists()
        newest = find_newest_checkpoint(directory)
        assert newest is not None
        assert newest == list_checkpoints(directory)[0]  # none that has the name of one is torn
        state.global_step = int(newest.name.rpartition("-")[2])
        steps.append(state.global_step)
    assert steps == sorted(steps)

    resumed = open_session(save_steps=1, max_steps=steps[-1] + 1)
    assert resumed.train()["steps"] == steps[-1] + 1
    assert not (directory / STAGE).exists()


# -- retention


def names(directory: Path) -> list[str]:
    return [path.name for path in list_checkpoints(directory)]


class Tamper(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Does something to the checkpoints once this one is published."""

    def __init__(self, step: int, work: Callable[[Path], object]) -> None:
        self.step, self.work = step, work

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.work(Path(args.output_dir))


def test_torn_checkpoints_do_not_cost_the_last_good_one(open_session: Open) -> None:
    """Limit 2: of steps 1 to 4, 2 and 3 are torn as they stand there; 1 is still the one to fall back to."""
    session = open_session(save_steps=1, max_steps=4, save_total_limit=2)

    def tear(directory: Path) -> None:
        for step in (2, 3):
            (directory / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")

    def add_torn(directory: Path) -> None:
        for step in (2, 3):
            shutil.copytree(directory / "checkpoint-1", directory / f"checkpoint-{step}", dirs_exist_ok=True)
        tear(directory)

    session.trainer.add_callback(Tamper(1, add_torn))
    session.trainer.args.save_steps = 4
    session.trainer.add_callback(SaveFirst())
    session.train()
    assert names(session.checkpoint_dir) == ["checkpoint-4", "checkpoint-1"]
    flip(session.checkpoint_dir / "checkpoint-4" / "adapter_model.safetensors", 0.3)
    newest = find_newest_checkpoint(session.checkpoint_dir)
    assert newest is not None
    assert newest.name == "checkpoint-1"


class SaveFirst(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Asks for a checkpoint of step 1."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or state.global_step == 1


def test_a_damaged_checkpoint_of_an_earlier_start_does_not_count(open_session: Open) -> None:
    fields = {"save_steps": 1, "save_total_limit": 3}
    session = open_session(max_steps=3, **fields)
    session.train()
    flip(session.checkpoint_dir / "checkpoint-2" / "optimizer.pt", 0.5)
    open_session(max_steps=4, **fields).train()
    assert names(session.checkpoint_dir) == ["checkpoint-4", "checkpoint-3", "checkpoint-1"]


def test_the_limit_holds_and_the_best_stays(open_session: Open) -> None:
    fields = {"learning_rate": 3e-2, "num_epochs": 30.0, "eval_steps": 3, "scheduler_type": "constant"}
    session = open_session(save_steps=1, save_total_limit=2, early_stopping_patience=2, **fields)
    seen: list[set[str]] = []
    session.on_event = lambda name, values: None
    session.trainer.add_callback(Watch(seen))
    result = session.train()
    best = f"checkpoint-{result['best_step']}"
    assert result["steps"] == result["best_step"] + 6
    assert all(len(found) == 2 for found in seen[1:])
    assert all(best in found for found in seen[result["best_step"] - 1 :])


class Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Notes which checkpoints there are after each save."""

    def __init__(self, seen: list[set[str]]) -> None:
        self.seen = seen

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(set(names(Path(args.output_dir))))


# -- a full disk


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.95])
def test_a_full_disk_fails_the_run_and_keeps_what_was_saved(small_disk: Path, open_session: Open, share: float) -> None:
    """Wherever in a checkpoint the disk ends: in the adapter, the optimizer's state or a file after these."""
    session, free_bytes = open_session(save_steps=2, max_steps=6), 0

    def fill(directory: Path) -> None:
        nonlocal free_bytes
        size = sum(path.stat().st_size for path in (directory / "checkpoint-2").iterdir())
        left = shutil.disk_usage(directory).free - int(share * size)
        (small_disk / "filler").write_bytes(bytes(left))
        free_bytes = shutil.disk_usage(directory).free

    session.trainer.add_callback(Tamper(2, fill))
    with pytest.raises(DiskFull) as raised:
        session.train()
    message = str(raised.value)
    assert f"no space left in {session.checkpoint_dir}: the checkpoint of step 4 needs 0." in message
    assert f"{free_bytes / 1e6:.1f} MB were free" in message
    assert [path.name for path in session.checkpoint_dir.iterdir()] == ["checkpoint-2"]
    assert find_newest_checkpoint(session.checkpoint_dir) == session.checkpoint_dir / "checkpoint-2"

    (small_disk / "filler").unlink()
    assert open_session(save_steps=2, max_steps=6).train()["steps"] == 6


def test_an_adapter_that_finds_no_room_is_a_full_disk_too(small_disk: Path, open_session: Open) -> None:
    session = open_session(max_steps=1)
    session.train()
    usage = shutil.disk_usage(small_disk)
    (small_disk / "filler").write_bytes(bytes(usage.free - 30_000))
    with pytest.raises(DiskFull, match=r"the adapter needs 0\.\d MB and 0\.0 MB were free"):
        session.save(small_disk / "adapter")
    assert not (small_disk / "adapter").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_by_its_number(tmp_path: Path, number: int) -> None:
    def write() -> None:
        with raising_disk_full(tmp_path / "new", "the adapter", 5_000_000):
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise RuntimeError("could not be written") from error

    with pytest.raises(DiskFull, match=r"new: the adapter needs 5\.0 MB and .* were free, or a quota is used up"):
        write()
    assert (DiskFull.code, DiskFull.status) == ("disk_full", 507)
    assert find_error("disk_full") is DiskFull


def test_other_errors_are_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), raising_disk_full(tmp_path, "the adapter", 0):
        raise PermissionError(errno.EACCES, "not yours")


def test_a_job_that_can_not_fit_is_refused_before_its_model_is_loaded(
    small_disk: Path,
    rows: PreparedData,
    model_path: Path,
    tmp_path: Path,
    make_config: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sft.training.session.load_model", lambda *arguments: pytest.fail("the model was loaded"))
    config = make_config(save_steps=1, save_total_limit=3)
    (small_disk / "filler").write_bytes(bytes(1_000_000))
    with pytest.raises(DiskFull, match=r"the job, with its checkpoints and its adapter, needs 1\.\d MB and 1\.1 MB"):
        open_on_devices(config, rows, model_path, small_disk / "job")
    (small_disk / "rest").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(DiskFull, match="the job, for its adapter, needs 0"):
        open_on_devices(config, rows, model_path, small_disk / "job", checkpoint_dir=tmp_path / "elsewhere")


# -- what must never run


class Payload:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (os.system, (f"touch {self.target}",))


LOADED = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin")


@pytest.mark.parametrize("name", [*LOADED, "training_args.bin", "adapter_model.bin"])
def test_a_planted_pickle_runs_nothing(open_session: Open, checkpoints: Path, tmp_path: Path, name: str) -> None:
    newest, former = list_checkpoints(checkpoints)
    target = tmp_path / "ran"
    (newest / name).write_bytes(pickle.dumps(Payload(target), protocol=2))  # as torch's own
    assert find_newest_checkpoint(checkpoints) == former
    seal_checkpoint(newest)  # by one who may write here, and knows the manifest
    session = open_session(save_steps=2, max_steps=5)
    if name in LOADED:
        with pytest.raises(CheckpointUnusable, match=f"{newest} contains pickled objects and is not loaded"):
            session.train()
    else:
        session.train()  # not even looked at
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target), protocol=2))  # noqa: S301
    assert target.exists()  # it would have


def test_a_checkpoint_holds_no_pickled_arguments(checkpoints: Path) -> None:
    found = {path.name for path in list_checkpoints(checkpoints)[0].iterdir()}
    assert not [name for name in found if name.endswith(".bin")]


def test_a_full_model_takes_no_weights_from_a_pickle(open_session: Open, tmp_path: Path) -> None:
    session = open_session(use_lora=False, save_steps=2, max_steps=2)
    session.train()
    newest = list_checkpoints(session.checkpoint_dir)[0]
    (newest / "model.safetensors").unlink()
    (newest / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    seal_checkpoint(newest)
    with pytest.raises(CheckpointUnusable):
        open_session(use_lora=False, save_steps=2, max_steps=4).train()
    assert not (tmp_path / "ran").exists()


def test_publishing_replaces_a_torn_checkpoint(tmp_path: Path) -> None:
    torn = tmp_path / "checkpoint-3"
    torn.mkdir()
    (torn / "old").write_text("half")
    staged = stage_checkpoint(tmp_path, 3)
    (staged / "new").write_text("whole")
    assert publish_checkpoint(staged) == torn
    assert sorted(path.name for path in torn.iterdir()) == [MANIFEST, "new"]
    assert list(tmp_path.iterdir()) == [torn]


def test_a_resumed_run_keeps_the_dtype_it_began_with(open_session, monkeypatch):
    dtypes = []

    def note(name, values):
        if name == "begin":
            dtypes.append(values["dtype"])

    for steps, bf16_seconds in ((2, 0.1), (4, 10.0)):  # the machine changes its mind
        monkeypatch.setattr("sft.models.loading.measure_gemm", lambda seconds=bf16_seconds: (1.0, seconds))
        open_session(save_steps=2, max_steps=steps, mixed_precision="auto", on_event=note).train()
    open_session("afresh", max_steps=1, mixed_precision="auto", on_event=note).train()
    assert dtypes == ["bfloat16", "bfloat16", "float32"]


class GivenUp(BaseException):
    """What the guard of a process raises that may not write any more."""


def test_a_process_that_was_given_up_publishes_nothing(open_session, tmp_path):
    session = open_session(save_steps=2, max_steps=4)
    entered = []

    @contextmanager
    def publishing():
        entered.append(session.trainer.state.global_step)
        if session.trainer.state.global_step == 4:
            raise GivenUp
        yield

    session.trainer.publishing = publishing
    with pytest.raises(GivenUp):
        session.train()
    assert entered[:3] == [0, 2, 4]
    assert [path.name for path in session.checkpoint_dir.iterdir()] == ["checkpoint-2"]
    with pytest.raises(GivenUp):
        session.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
