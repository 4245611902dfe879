"""Checkpoints in the store: a machine that has nothing goes on where another one was lost."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from uuid import uuid4

import pytest
import torch
from prefect.exceptions import Abort

from jobs.errors import StoreRefused
from jobs.lifecycle.attempts import Attempt, Superseded
from jobs.shared_store import SharedStore, checkpoint_name, list_stored_checkpoints, owner_of
from jobs.spec import JobSpec
from jobs.storage.events import read_events
from jobs.storage.tables import engine_for
from sft.checkpoints.folders import STATE, find_newest_checkpoint, is_whole, seal_checkpoint
from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.errors import DiskFull, StackError
from sft.training.session import TrainingSession
from tasks import resuming
from tasks.checkpoint_store import WAITING, CheckpointSender, fetch_newest
from tasks.journal import open_journal
from tasks.model import find_base_model
from tests.conftest import wait_until
from tests.s3_server import BUCKET, s3_server
from tests.tiny_models import save_tiny_model

SECONDS = 60


@pytest.fixture(scope="module")
def s3():
    with s3_server("AWS_ENDPOINT_URL") as server:
        yield server


@pytest.fixture
def store(s3, tmp_path):
    return SharedStore(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def job():
    return uuid4()


@contextmanager
def sending(store, job_id, limit=3, **options):
    """A sender, closed at the end; what it stored in its `stored`."""
    stored = []
    publishing = options.pop("publishing", contextmanager(lambda: iter([None])))
    sender = CheckpointSender(store, job_id, publishing, limit, lambda *facts: stored.append(facts))
    sender.stored = stored
    try:
        yield sender
    finally:
        sender.close(SECONDS)


def write_checkpoint(directory, step, best=None):
    """A small checkpoint as training leaves it, with a tokenizer that never changes."""
    folder = directory / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(b"t" * 50_000)
    (folder / "adapter_model.safetensors").write_bytes(str(step).encode() * 1000)
    losses = [{"step": at, "eval_loss": 1.0 if at == best else 2.0} for at in range(10, step + 1, 10)] if best else []
    (folder / STATE).write_text(f'{{"log_history": {losses}}}'.replace("'", '"'))
    seal_checkpoint(folder)
    return folder


def test_a_checkpoint_comes_back_whole_on_another_machine(store, job, tmp_path):
    with sending(store, job) as sender:
        for step in (10, 20):
            folder = write_checkpoint(tmp_path / "lost", step)
            sender.add(folder)
            wait_until(lambda step=step: sender.stored[-1:] and sender.stored[-1][0] == step, SECONDS)
    assert sender.stored[0][1] > 50_000 > sender.stored[1][1]  # the tokenizer was sent once
    assert not [*(tmp_path / "lost" / WAITING).iterdir()]
    shutil.rmtree(tmp_path / "lost")

    assert fetch_newest(store, job, tmp_path / "here", needs_best=False) == 20
    assert find_newest_checkpoint(tmp_path / "here") == tmp_path / "here" / "checkpoint-20"
    assert (tmp_path / "here/checkpoint-20/adapter_model.safetensors").read_bytes() == b"20" * 1000
    assert fetch_newest(store, job, tmp_path / "here", needs_best=False) is None  # it is here
    write_checkpoint(tmp_path / "here", 30)
    assert fetch_newest(store, job, tmp_path / "here", needs_best=False) is None  # and a later one
    assert fetch_newest(store, uuid4(), tmp_path / "other", needs_best=False) is None


def test_a_checkpoint_that_is_deleted_here_is_sent_all_the_same(store, job, tmp_path):
    with sending(store, job) as sender:
        folder = write_checkpoint(tmp_path, 10)
        sender.add(folder)
        shutil.rmtree(folder)
    assert [*list_stored_checkpoints(store, job)] == [10]


def test_as_many_are_kept_as_on_the_disk_and_the_best_besides(store, job, tmp_path):
    with sending(store, job, limit=2) as sender:
        for step in (10, 20, 30, 40):
            sender.add(write_checkpoint(tmp_path, step, best=10))
            wait_until(lambda step=step: sender.stored[-1:] and sender.stored[-1][0] == step, SECONDS)
    assert [*list_stored_checkpoints(store, job)] == [10, 40]
    assert fetch_newest(store, job, tmp_path / "here", needs_best=True) == 40
    assert is_whole(tmp_path / "here/checkpoint-10")
    with sending(store, job, limit=2) as sender:  # a run that had to go back
        sender.add(write_checkpoint(tmp_path, 25))
    assert [*list_stored_checkpoints(store, job)] == [10, 25]


def test_the_best_one_is_sent_if_the_store_was_away_when_it_was_made(store, job, tmp_path):
    write_checkpoint(tmp_path, 10, best=10)
    with sending(store, job) as sender:
        sender.add(write_checkpoint(tmp_path, 20, best=10))
    assert [*list_stored_checkpoints(store, job)] == [10, 20]


def test_a_damaged_one_gives_way_to_the_one_before(store, job, tmp_path):
    with sending(store, job) as sender:
        for step in (10, 20):
            sender.add(write_checkpoint(tmp_path / "lost", step))
            wait_until(lambda step=step: sender.stored[-1:] and sender.stored[-1][0] == step, SECONDS)
    digest, size = store.get(owner_of(job), checkpoint_name(20)).files["adapter_model.safetensors"]
    with store._storage() as (storage, root):
        storage.pipe_file(f"{root}/{owner_of(job)}/files/{digest}", bytes(size))
    assert fetch_newest(store, job, tmp_path / "here", needs_best=False) == 10


def test_a_store_that_is_away_holds_nothing_up_and_gets_the_newest_later(store, job, tmp_path, monkeypatch, caplog):
    is_away = threading.Event()
    is_away.set()
    put = SharedStore.put

    def fail(*arguments, **options):
        if is_away.is_set():
            raise StackError("the store is full")
        return put(*arguments, **options)

    monkeypatch.setattr(SharedStore, "put", fail)
    with sending(store, job) as sender:
        for step in (10, 20, 30):
            sender.add(write_checkpoint(tmp_path, step))
        assert len([*(tmp_path / WAITING).iterdir()]) <= 2  # those overtaken do not fill the disk
        is_away.clear()
    assert [*list_stored_checkpoints(store, job)] == [30]
    assert caplog.text.count("does not take checkpoints") <= 1


def test_what_does_not_reach_the_store_in_time_is_said(store, job, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise StackError("away")

    monkeypatch.setattr(SharedStore, "put", fail)
    sender = CheckpointSender(store, job, contextmanager(lambda: iter([None])), 3)
    sender.add(write_checkpoint(tmp_path, 10))
    assert not sender.close(0.5)
    assert "was not sent to the store" in caplog.text


def test_a_process_that_lost_its_job_changes_nothing_there(store, job, tmp_path):
    @contextmanager
    def superseded():
        raise Superseded("another attempt has begun")
        yield

    with sending(store, job, limit=1) as sender:
        sender.add(write_checkpoint(tmp_path, 10))
    stale = CheckpointSender(store, job, superseded, 1)
    stale.add(write_checkpoint(tmp_path, 20))
    assert not stale.close(SECONDS)
    assert [*list_stored_checkpoints(store, job)] == [10]


def train(folder, host, on_event=None):
    """Train the model of a folder on a host in it; the hash of the adapter."""
    config = SFTConfig(
        base_model="tiny", dataset_name="rows.json", dataset_format="alpaca", num_epochs=3.0, batch_size=1,
        gradient_accumulation_steps=2, lora_dropout=0.2, validation_split=0.25, save_steps=1, max_seq_length=64,
        mixed_precision="none",
    )  # fmt: skip
    prepared = prepare(config, folder / "model", folder / "rows.json", folder / "cache")
    session = TrainingSession(config, prepared, folder / "model", folder / host, on_event)
    session.train()
    weights = session.save(folder / host / "adapter") / "adapter_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def train_until_killed(folder, host, url, job_id, last):
    """Go on where the store has the job, and kill this process once the store has this step."""
    torch.set_num_threads(1)
    store, directory = SharedStore(url), folder / host / "checkpoints"
    fetch_newest(store, job_id, directory, needs_best=False)

    def stored(step, *_):
        if step >= last:
            os.kill(os.getpid(), signal.SIGKILL)

    sender = CheckpointSender(store, job_id, contextmanager(lambda: iter([None])), 3, stored)

    def on_event(name, values):
        if name == "checkpoint":
            sender.add(directory / f"checkpoint-{values['step']}")
            sender_is_idle(sender)

    train(folder, host, on_event)


@pytest.fixture
def one_thread():
    """As in the processes that are killed: the number of threads decides in which order numbers are added."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.mark.timeout(700)
@pytest.mark.usefixtures("one_thread")
def test_a_run_that_is_killed_with_its_disk_ends_with_the_very_adapter(store, job, tmp_path):
    """Killed again and again, its folder deleted each time: bit for bit what an uninterrupted run makes."""
    numbers = [" ".join(str(i) for i in range(n + 1)) for n in range(14)]
    rows = [{"instruction": f"Count to {n}.", "output": output} for n, output in enumerate(numbers)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    save_tiny_model("llama", tmp_path / "model")
    whole = train(tmp_path, "whole")
    for number, last in enumerate((4, 9)):
        host = f"host-{number}"
        given = (tmp_path, host, store.url, job, last)
        child = multiprocessing.get_context("spawn").Process(target=train_until_killed, args=given)
        child.start()
        child.join(250)
        assert child.exitcode == -signal.SIGKILL
        shutil.rmtree(tmp_path / host)
        assert max(list_stored_checkpoints(store, job)) == last
    assert fetch_newest(store, job, tmp_path / "last" / "checkpoints", needs_best=False) == 9
    assert train(tmp_path, "last") == whole


def sender_is_idle(sender):
    wait_until(lambda: sender._newest is None, SECONDS)


@pytest.mark.stack
def test_a_restart_below_a_checkpoint_says_why(stack, store, tmp_path, monkeypatch):
    """A host is lost before its checkpoint has reached the store; the next one tells what that costs."""
    job_id = uuid4()
    spec = JobSpec(config=SFTConfig(base_model="tiny", dataset_name="handbook@v1.0", dataset_format="alpaca"))
    settings = stack.model_copy(update={"store": store.url})
    directory = tmp_path / "checkpoints"

    def fail(*_, **__):
        raise StackError("away")

    def train_until_lost():
        with open_journal(settings, job_id, spec) as journal:
            resuming.prepare_checkpoints(journal, directory, needs_best=False)
            report(journal, 10)
            sender_is_idle(journal.sender)
            monkeypatch.setattr(SharedStore, "put", fail)
            report(journal, 20)
            raise KeyboardInterrupt

    def report(journal, step):
        journal.on_event("checkpoint", {"step": step, "path": str(write_checkpoint(directory, step))})

    monkeypatch.setattr("tasks.journal.STORE_SECONDS", {"interrupted": 0.1})
    with pytest.raises(Abort):
        train_until_lost()
    monkeypatch.undo()
    shutil.rmtree(directory)
    monkeypatch.setattr(resuming, "HOST", "another")
    with open_journal(settings, job_id, spec) as journal:
        resuming.prepare_checkpoints(journal, directory, needs_best=False)
        assert [path.name for path in directory.glob("checkpoint-*")] == ["checkpoint-10"]
    told = [event.data for event in read_events(engine_for(stack.database_url), job_id) if event.event == "restart"]
    assert [(event["step"], event["reported_step"]) for event in told] == [(10, 20)]
    assert "had not reached the store" in told[0]["reason"]
    stored = [event.data for event in read_events(engine_for(stack.database_url), job_id) if event.event == "stored"]
    assert [event["step"] for event in stored] == [10]


def test_a_best_one_whose_list_of_files_is_damaged_holds_up_no_other(store, job, tmp_path):
    write_checkpoint(tmp_path, 10, best=10)
    with store._storage() as (storage, root):
        storage.pipe_file(f"{root}/{owner_of(job)}/{checkpoint_name(10)}.json", b"{")
    with sending(store, job) as sender:
        sender.add(write_checkpoint(tmp_path, 20, best=10))
    assert [*list_stored_checkpoints(store, job)] == [10, 20]


def test_a_full_disk_here_is_not_said_to_be_the_stores(job, tmp_path, monkeypatch):
    store = SharedStore((tmp_path / "shared").as_uri())
    with sending(store, job) as sender:
        sender.add(write_checkpoint(tmp_path / "lost", 10))

    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fill)
    with pytest.raises(DiskFull, match="the checkpoint needs"):
        fetch_newest(store, job, tmp_path / "here", needs_best=False)


@pytest.mark.stack
def test_a_job_that_is_stopped_lets_go_once_its_last_step_is_in_the_store(stack, store, tmp_path, monkeypatch):
    job_id = uuid4()
    spec = JobSpec(config=SFTConfig(base_model="tiny", dataset_name="handbook@v1.0", dataset_format="alpaca"))
    released_with = []
    release, put = Attempt.release, SharedStore.put

    def note(attempt, **why):
        released_with.append([*list_stored_checkpoints(store, job_id)])
        release(attempt, **why)

    def put_slowly(*given, **options):
        time.sleep(1)
        return put(*given, **options)

    def train_until_stopped():
        with open_journal(stack.model_copy(update={"store": store.url}), job_id, spec) as journal:
            resuming.prepare_checkpoints(journal, tmp_path, needs_best=False)
            journal.on_event("checkpoint", {"step": 10, "path": str(write_checkpoint(tmp_path, 10))})
            raise KeyboardInterrupt

    monkeypatch.setattr(Attempt, "release", note)
    monkeypatch.setattr(SharedStore, "put", put_slowly)
    with pytest.raises(Abort):
        train_until_stopped()
    assert released_with == [[10]]


@pytest.mark.stack
def test_a_job_whose_store_cannot_be_used_fails_before_its_model_is_looked_for(stack, s3, monkeypatch):
    spec = JobSpec(config=SFTConfig(base_model="tiny", dataset_name="handbook@v1.0", dataset_format="alpaca"))
    looked = []
    monkeypatch.setattr("tasks.model.locate_model", lambda *given: looked.append(given))
    settings = stack.model_copy(update={"store": "s3://no-such-bucket/x"})

    def start():
        with open_journal(settings, uuid4(), spec) as journal:
            find_base_model.fn(spec.config, journal)

    with pytest.raises(StoreRefused, match="does not exist"):
        start()
    assert looked == []
