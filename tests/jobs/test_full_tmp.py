"""A temporary folder that is full or gone: it opens no other place, and plans say so."""

import contextlib
import os
import tempfile

import pytest

from jobs.errors import PlanningFailed
from jobs.folders import output_folder
from jobs.service.planner import Planner
from jobs.settings import Settings
from sft.confinement import open_note
from sft.errors import InvalidConfig


@pytest.fixture
def full(small_disk, monkeypatch):
    """A temporary folder without a byte left; what takes its space."""
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**14))
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return ballast


def test_no_other_folder_takes_its_place_as_root_of_outputs(full, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=tmp_path / "home")
    for place in (tmp_path / "work", "/tmp/elsewhere", "/var/tmp/elsewhere"):
        with pytest.raises(InvalidConfig, match="output_dir must be in one of"):
            output_folder(settings, str(place))
    assert output_folder(settings, str(full.parent / "mine")) == full.parent / "mine"


def test_the_note_of_a_plan_or_job_needs_no_disk(full):
    note = open_note()
    os.pwrite(note, b"what it is at", 0)
    os.close(note)


def test_a_planner_without_a_place_for_its_socket_says_so(monkeypatch):
    monkeypatch.setenv("TMPDIR", f"/tmp/gone-{os.getpid()}")
    planner = Planner()
    try:
        with pytest.raises(PlanningFailed, match="needs a temporary folder"):
            planner.start()
    finally:
        planner.close()
