"""A temporary folder that fills up or can't be written to: what a job or plan needs it for ends in `disk_full`."""

import contextlib
import json
import subprocess
import tempfile

import pytest

from jobs.settings import Settings
from sft.errors import TuneyardError
from tasks.causes import explain
from tasks.dataset import resolve
from tasks.plan import answer

REFERENCE = "handbook@v1.0"


def fill(disk):
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**12))


def close(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def lose(disk):
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)  # the fixture takes it away
    tempfile.tempdir = str(disk / "gone")


@pytest.fixture(params=[fill, close, lose], ids=["full", "read-only", "gone"])
def spoilt(request, small_disk, monkeypatch):
    """The temporary folder of a process that has found it in order before."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    request.param(small_disk)
    return request.node.callspec.id


def test_a_job_that_needs_it_says_so(spoilt, registry, tmp_path):
    settings = Settings(home=tmp_path / "home", dataset_registry=registry)
    with pytest.raises((TuneyardError, OSError)) as caught:
        resolve(REFERENCE, settings)
    cause = explain(caught.value)
    assert (cause.code, cause.is_worth_retrying) == ("disk_full", False)
    assert len(cause.message.splitlines()) == 1


def test_a_plan_that_needs_it_says_so(spoilt, registry, tmp_path, monkeypatch):
    settings = Settings(home=tmp_path / "home", dataset_registry=registry)
    monkeypatch.setattr("tasks.plan.locate_model", lambda *_: tmp_path)
    config = {"base_model": "tiny/llama", "dataset_name": REFERENCE, "dataset_format": "auto"}
    request = json.dumps({"config": config, "settings": settings.model_dump(mode="json")})
    assert json.loads(answer(request))["error"]["code"] == "disk_full"


def test_no_usable_temporary_folder_is_a_full_disk():
    """As Python itself says it."""
    error = FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/']")
    cause = explain(error)
    assert cause.code == "disk_full"
    assert "TMPDIR" in cause.message
