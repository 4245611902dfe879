"""Processes that are killed leave no temporary files behind."""

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.project import PROJECT_ROOT
from jobs.scratch import lending_scratch, make_scratch, sweep
from sft.errors import DiskFull
from sft.files.temporary_folders import temporary_folder

MAKE_FILES = """
import os, pathlib, tempfile, time
from jobs.scratch import use_scratch
use_scratch()
pathlib.Path(tempfile.mkdtemp(prefix="tuneyard-dvc-"), "file").write_text("x")
open(tempfile.mkstemp()[1], "w").write("x")
print("made", flush=True)
time.sleep(60)
"""
PLAN = """
import selectors, socket, sys, pathlib, tempfile, time
from tasks.plan_children import PlanChildren
place = pathlib.Path(sys.argv[1])
def answer(line):
    pathlib.Path(tempfile.mkdtemp(prefix="tuneyard-dvc-"), "file").write_text("x")
    time.sleep(60)
selector = selectors.DefaultSelector()
ours, theirs = socket.socketpair()
children = PlanChildren(selector, answer, [ours], place)
children.start(theirs)
(child,) = children._children
ours.sendall(b"{}\\n")
while not list(place.glob("plan-*/*/file")):
    time.sleep(0.01)
if sys.argv[2] == "client gone":
    ours.close()
    children.settle(child)
else:
    children.end_all()
print([*place.iterdir()])
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("how", ["client gone", "service gone"])
def test_a_plan_that_is_killed_leaves_no_temporary_files(tmp_path, how):
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(tmp_path), how],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    assert done.stdout == "[]\n"


def start(more, handles):
    command = [sys.executable, "-c", MAKE_FILES]
    environment = os.environ | more
    process = subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, text=True, pass_fds=handles
    )
    assert process.stdout.readline() == "made\n"
    return process


@pytest.mark.parametrize("use", ["job", "single-plan"])
def test_a_process_that_is_killed_leaves_no_temporary_files(place, use):
    with lending_scratch(use) as (more, handles), start(more, handles) as process:
        assert [path.name for path in place.iterdir()] == [Path(more["TUNEYARD_SCRATCH"]).name]
        process.send_signal(signal.SIGKILL)
    assert not list(place.iterdir())


def test_files_go_once_starter_and_process_were_killed_and_no_sooner(place):
    scratch = make_scratch("job")
    with start({"TUNEYARD_SCRATCH": str(scratch.folder)}, [scratch.lock]) as process:
        os.close(scratch.lock)  # the starter was killed
        sweep(place)
        assert len(list(scratch.folder.iterdir())) == 2
        process.send_signal(signal.SIGKILL)
    make_scratch("planner").remove()
    assert not list(place.iterdir())


def test_what_others_have_made_is_left_alone(place):
    target = place / "target"
    target.mkdir(mode=0o700)
    (place / "tuneyard-job-open").mkdir()
    (place / "tuneyard-job-link").symlink_to(target)
    (place / "tuneyard-job-file").touch()
    (place / "tuneyard-job-open").chmod(0o770)
    sweep(place)
    assert len(list(place.iterdir())) == 4


def test_makers_that_sweep_at_once_take_no_folder_from_each_other(place):
    """A folder that is swept between its making and its locking is made again."""

    def make():
        for _ in range(50):
            scratch = make_scratch("job")
            (scratch.folder / "file").touch()
            assert scratch.folder.is_dir()
            scratch.remove()

    with ThreadPoolExecutor(8) as pool:
        for made in [pool.submit(make) for _ in range(8)]:
            made.result()
    assert not list(place.iterdir())


@pytest.mark.parametrize("kind", ["gone", "read-only", "a file"])
def test_without_a_temporary_folder_a_job_is_started_and_what_needs_one_says_so(tmp_path, monkeypatch, kind):
    folder = tmp_path / "temporary"
    if kind == "a file":
        folder.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(folder) if kind != "read-only" else "/proc")
    with lending_scratch("job") as (more, handles):
        assert (more, handles) == ({}, [])
    with pytest.raises(DiskFull, match=r"no temporary folder can be made .*TMPDIR"), temporary_folder("any-"):
        pass
