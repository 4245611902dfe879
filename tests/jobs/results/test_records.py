"""A job's checkpoints and adapter are listed while training replaces them."""

import hashlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import create_engine

from jobs.errors import AdapterNotFound, AdapterNotReady
from jobs.folders import checkpoint_folder, job_folder
from jobs.mlflow_server import MlflowServer
from jobs.results import archive, records, result_files
from jobs.results.archive import checksum
from jobs.results.archive_members import Member, MlflowFile
from jobs.results.records import list_checkpoints
from jobs.results.result_files import prepare_download
from jobs.service.job import Job
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import JobStatus
from sft.checkpoints.folders import publish_checkpoint, rotate_checkpoints, stage_checkpoint
from sft.config import SFTConfig
from sft.errors import StackError
from sft.files.publication import publish_folder

JOB_ID = UUID("550e8400-e29b-41d4-a716-446655440000")
CONFIG = SFTConfig(base_model="m", dataset_name="d", dataset_format="auto")
NO_DATABASE = create_engine("sqlite://")  # of jobs whose folder is here nothing is read from it
LOOKS = 300


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


@pytest.fixture
def job(settings):
    adapter = job_folder(settings, CONFIG, JOB_ID) / "adapter"
    return Job(
        JOB_ID, "n", JobStatus.COMPLETED, "normal", JobSpec(config=CONFIG), {}, None, None, None,
        result={"model_name": "support", "model_version": "7"}, output_path=str(adapter),
    )  # fmt: skip


@contextmanager
def going_on(step) -> Iterator[None]:
    """Call `step(number)` again and again on a thread of its own."""
    over, problems = threading.Event(), []

    def run() -> None:
        for number in itertools.count(1):
            if over.is_set():
                return
            try:
                step(number)
            except Exception as error:
                problems.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert problems == []


def test_checkpoints_are_listed_while_they_rotate(settings, job):
    directory = checkpoint_folder(settings, CONFIG, JOB_ID)

    def save(number: int) -> None:
        staged = stage_checkpoint(directory, number)
        (staged / "nested").mkdir()
        for name in ("adapter.bin", "nested/optimizer.bin"):
            (staged / name).write_bytes(bytes(1000))
        newest = publish_checkpoint(staged)
        rotate_checkpoints(newest, 2, None, [*directory.glob("checkpoint-*")])

    save(0)
    shown: list = []
    looks, deadline = 0, time.monotonic() + 60
    with going_on(save):  # on a busy machine a few saves take longer than many looks
        while looks < LOOKS or (len({one["step"] for one in shown}) <= 3 and time.monotonic() < deadline):
            shown += list_checkpoints(settings, NO_DATABASE, job)
            looks += 1

    assert len(shown) > LOOKS / 2
    assert len({checkpoint["step"] for checkpoint in shown}) > 3
    assert {checkpoint["complete"] for checkpoint in shown} == {True}
    assert all(checkpoint["bytes"] > 2000 for checkpoint in shown)


def test_checkpoints_of_a_folder_that_goes_away(settings, job):
    directory = checkpoint_folder(settings, CONFIG, JOB_ID)

    def step(_number: int) -> None:
        (directory / "checkpoint-1").mkdir(parents=True)
        (directory / "checkpoint-1" / "a.bin").write_bytes(b"x")
        directory.rename(directory.with_name("away"))
        shutil.rmtree(directory.with_name("away"))

    with going_on(step):
        for _ in range(LOOKS):
            try:
                list_checkpoints(settings, NO_DATABASE, job)
            except Exception as error:  # the database has no table to fall back on: any other error is a fault
                assert "no such table" in str(error)  # noqa: PT017


def write_adapter(folder: Path, number: int) -> None:
    with publish_folder(folder) as fresh:
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
            (fresh / name).write_bytes(f"{number} ".encode() * 20_000)


def test_an_adapter_is_sent_whole_while_it_is_replaced(settings, job):
    folder = Path(job.output_path)
    write_adapter(folder, 0)
    sent_whole, looks, deadline = 0, 0, time.monotonic() + 60
    with going_on(lambda number: write_adapter(folder, number)):
        while looks < 40 or (not sent_whole and time.monotonic() < deadline):
            looks += 1
            try:
                sent = prepare_download(settings, job)
                content = b"".join(sent.archive.read())
            except AdapterNotReady as error:
                assert "try again" in str(error)  # noqa: PT017
            else:
                assert (len(content), hashlib.sha256(content).hexdigest()) == (sent.archive.size, sent.sha256)
                sent_whole += 1
    assert sent_whole


@pytest.mark.parametrize("is_far", [False, True], ids=["in its folder", "in the registry"])
def test_any_part_of_an_adapter_is_that_part_of_the_whole(settings, job, monkeypatch, is_far):
    folder = Path(job.output_path)
    write_adapter(folder, 3)
    (folder / "empty.txt").touch()
    sent = prepare_download(settings, job).archive
    if is_far:
        content = {member.name: member.path.read_bytes() for member in sent.members}
        server = MlflowServer("http://far.example")
        far = [replace(member, path=None, remote=MlflowFile(server, member.name)) for member in sent.members]
        monkeypatch.setattr(MlflowFile, "read", lambda file, seconds: iter(batched(content[file.place], 7000)))
        sent = replace(sent, members=tuple(far))
    whole = b"".join(sent.read())
    assert len(whole) == sent.size
    edges = [0, 1, 511, 512, 513, 40_511, 40_512, 41_472, 41_473, 41_984, 60_000, len(whole) - 1]
    for start in edges:
        for stop in (start + 1, start + 512, start + 41_000, len(whole)):
            assert b"".join(sent.read(start, stop)) == whole[start:stop], (start, stop)


def batched(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def test_what_comes_before_a_part_is_not_read(settings, job, monkeypatch):
    """To go on with a download costs what is left of it."""
    write_adapter(Path(job.output_path), 1)
    sent = prepare_download(settings, job).archive
    read = []
    really_read = Member.read

    def count(member, file, start=0):
        for chunk in really_read(member, file, start):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(Member, "read", count)
    assert len(b"".join(sent.read(sent.size - 20_000))) == 20_000
    assert sum(read) < 20_000


def test_what_is_replaced_once_it_is_being_sent_is_sent_as_it_was(settings, job):
    folder = Path(job.output_path)
    write_adapter(folder, 1)
    sent = prepare_download(settings, job)
    chunks = sent.archive.read()
    first = next(chunks)
    write_adapter(folder, 2)

    assert hashlib.sha256(first + b"".join(chunks)).hexdigest() == sent.sha256
    with pytest.raises(AdapterNotReady, match="changed while it was read; try again"):
        next(sent.archive.read())


def test_a_link_that_leads_to_itself_is_no_file_of_the_adapter(settings, job):
    folder = Path(job.output_path)
    write_adapter(folder, 1)
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    with pytest.raises(AdapterNotFound, match="leads out of the job's folder"):
        prepare_download(settings, job)


def test_a_file_that_can_not_be_read_any_more_is_named(settings, job, monkeypatch):
    write_adapter(Path(job.output_path), 1)
    sent = prepare_download(settings, job)
    if os.geteuid() == 0:  # who may read everything
        monkeypatch.setattr(Path, "open", deny)
    else:
        (Path(job.output_path) / "tokenizer.json").chmod(0)
    with pytest.raises(StackError, match=r"the adapter's \S+ can't be read \(Permission denied\)"):
        next(sent.archive.read())


def deny(*_args: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_an_adapter_that_is_asked_for_by_many_is_read_once(settings, job):
    write_adapter(Path(job.output_path), 1)
    before = archive._checksum.cache_info().misses
    with ThreadPoolExecutor(8) as pool:
        asked = [*pool.map(lambda _: prepare_download(settings, job), range(8))]

    assert len(set(asked)) == 1
    assert archive._checksum.cache_info().misses == before + 1
    assert checksum(asked[0].archive) == asked[0].sha256


@pytest.mark.parametrize("swapped", ["file", "folder"])
def test_a_link_put_in_the_place_of_a_listed_file_is_not_followed(settings, job, tmp_path, swapped):
    """Not even to a file as long and as old."""
    adapter, outside = Path(job.output_path), tmp_path / "outside"
    for folder in (adapter, outside):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(folder.name[:1].encode())
        os.utime(folder / "weights", ns=(10**18, 10**18))
    (member,) = result_files.find_adapter(settings, job).members
    taken = adapter if swapped == "folder" else adapter / "weights"
    taken.rename(tmp_path / "former")
    taken.symlink_to(outside if swapped == "folder" else outside / "weights")
    with pytest.raises(AdapterNotReady, match="weights changed"):
        member.open()


def test_the_csv_of_metrics_holds_numbers_only():
    series = {name: {} for name in records.METRICS}
    records._add_points(series, 1, {"loss": 1.5, "learning_rate": '=HYPERLINK("http://x")'})
    text = records.series_to_csv({name: sorted(found.items()) for name, found in series.items()})
    assert "=" not in text
    assert "1.5" in text
