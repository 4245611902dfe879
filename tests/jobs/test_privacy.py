"""Other accounts of the machine can open nothing of a state folder, whoever has made it and when."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tuneyard_client.folders
from cli.diagnosis import Level
from cli.doctor import check_permissions
from jobs.folders import make_home
from jobs.privacy import find_open, tighten
from jobs.project import PROJECT_ROOT
from jobs.settings import Settings
from sft.files.publication import publish_folder
from tests.attack.permissions import look_as_another


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """Files are made as open as most machines have it, whatever a test before has set."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """As earlier releases made it."""
    home = tmp_path / "home"
    (home / "outputs/job").mkdir(parents=True)
    (home / "outputs/job/adapter_model.safetensors").write_text("weights")
    (home / "run.sh").write_text("#!/bin/sh")
    (home / "run.sh").chmod(0o775)
    (tmp_path / "elsewhere").write_text("somebody's")
    (tmp_path / "shared").write_text("somebody's")
    (home / "link").symlink_to(tmp_path / "elsewhere")
    (home / "shared").hardlink_to(tmp_path / "shared")
    os.mkfifo(home / "pipe", 0o666)
    return home


def test_a_home_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    make_home(tmp_path / "home")
    assert mode(tmp_path / "home") == 0o700


def test_an_existing_home_is_closed_and_nothing_else(old_home: Path, tmp_path: Path) -> None:
    assert tighten(old_home) == 6
    assert {mode(path) for path in (old_home, old_home / "outputs", old_home / "outputs/job")} == {0o700}
    assert mode(old_home / "outputs/job/adapter_model.safetensors") == 0o600
    assert (mode(old_home / "run.sh"), mode(old_home / "pipe")) == (0o700, 0o600)
    assert (mode(tmp_path / "elsewhere"), mode(tmp_path / "shared")) == (0o644, 0o644)
    assert [*find_open(old_home)] == []
    assert tighten(old_home) == 0
    assert look_as_another(old_home).reachable == 0


def test_a_folder_that_is_not_the_services_alone_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, own = tmp_path / "tmp", tmp_path / "user"
    shared.mkdir()
    shared.chmod(0o1777)
    own.mkdir(mode=0o755)
    monkeypatch.setenv("HOME", str(own))
    assert (tighten(shared), tighten(own), tighten(Path("/"))) == (0, 0, 0)
    assert (mode(shared), mode(own)) == (0o1777, 0o755)


def test_doctor_names_what_is_open(old_home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "data"
    outside.mkdir(mode=0o750)
    settings = Settings(home=old_home, data_root=outside)
    found = list(check_permissions(settings))
    assert [finding.level for finding in found] == [Level.WARN, Level.WARN]
    assert f"{old_home} (755)" in found[0].detail
    assert f"{outside} (750)" in found[1].detail
    tighten(old_home)
    outside.chmod(0o700)
    assert [finding.level for finding in check_permissions(settings)] == [Level.OK]


def test_what_is_published_is_as_open_as_its_process_makes_files(tmp_path: Path) -> None:
    for umask, folder, file in ((0o077, 0o700, 0o600), (0o022, 0o755, 0o644)):
        os.umask(umask)
        with publish_folder(tmp_path / f"{umask}") as fresh:
            (fresh / "file").touch(mode=0o600)
        assert (mode(tmp_path / f"{umask}"), mode(tmp_path / f"{umask}" / "file")) == (folder, file)


def test_a_command_writes_for_its_user_alone(tmp_path: Path) -> None:
    code = "from cli.__main__ import main; main(['doctor', '--help'], standalone_mode=False); open('made', 'w')"
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert mode(tmp_path / "made") == 0o600


@pytest.mark.stack
def test_no_other_account_opens_a_file_of_a_running_stack(stack: Settings) -> None:
    rights = look_as_another(stack.home)
    assert (rights.reachable, rights.loose_processes) == (0, 0)
    assert min(rights.found, rights.processes) > 5
    assert [*find_open(stack.home)] == []


def test_publishing_leaves_the_umask_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be asked for only by setting it, and threads that did so at once kept the strict one of the moment."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail(f"the umask was set to {mask:o}"))
    for publish in (publish_folder, tuneyard_client.folders.publish_folder):
        folder = tmp_path / publish.__module__
        with publish(folder) as fresh:
            (fresh / "file").touch()
        assert (mode(folder), mode(folder / "file")) == (0o755, 0o644)
    monkeypatch.undo()
