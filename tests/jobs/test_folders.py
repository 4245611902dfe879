"""A state folder that can't serve is refused in one sentence, before anything is started."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.folders import make_home
from jobs.project import PROJECT_ROOT
from jobs.settings import Settings
from jobs.stack import deployments, postgres
from jobs.stack.parts import place_caches
from sft.errors import StackError


def test_it_is_made_and_left_empty(tmp_path: Path) -> None:
    make_home(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/tuneyard", "/sys/tuneyard", "long" * 100])
def test_what_is_no_folder_of_ours_is_refused_by_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / place
    with pytest.raises(StackError) as caught:
        make_home(home)
    assert str(caught.value).startswith(f"the state folder {home} can't be used: ")
    assert str(caught.value).endswith("; set TUNEYARD_HOME to a folder of yours on a local disk")


def test_a_read_only_file_system_is_refused(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StackError, match="Read-only file system"):
        make_home(small_disk)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="is not UTF-8 here"):
        make_home(tmp_path / "b\udcff")


def test_parts_get_a_home_and_a_cache_that_can_be_written_to(tmp_path: Path, small_disk: Path) -> None:
    home = tmp_path / "state"
    environment = {"HOME": str(small_disk)}
    place_caches(environment, home)
    assert environment == {"HOME": str(small_disk)}

    hub = small_disk / ".cache" / "huggingface" / "hub"
    hub.mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    place_caches(environment, home)
    assert environment == {"HOME": str(small_disk), "XDG_CACHE_HOME": str(home / "cache"), "HF_HUB_CACHE": str(hub)}

    environment = {"HOME": "/nowhere"}
    place_caches(environment, tmp_path)
    assert environment == {"HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TUNEYARD_PREFECT_PORT", "many", "TUNEYARD_PREFECT_PORT"),
        ("TUNEYARD_HOME", "/proc/tuneyard", "the state folder /proc/tuneyard can't be used: "),
        ("TUNEYARD_HOME", "~nobody-at-all/x", "TUNEYARD_HOME is '~nobody-at-all/x', and no home folder is known"),
    ],
)
def test_the_command_line_says_it_in_one_line(tmp_path: Path, variable: str, value: str, says: str) -> None:
    environment = {"PATH": "/usr/bin", "HOME": str(tmp_path), "PYTHONPATH": str(PROJECT_ROOT), variable: value}
    command = [sys.executable, "-m", "cli", "up"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_interpreter_whose_path_is_a_template_to_prefect_is_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(StackError, match="install Tuneyard in a folder without it"):
        deployments.deploy(Settings(home=tmp_path), "gpu", tmp_path, {}, "/{{x}}/bin/python")


def test_a_user_id_without_an_account_is_given_a_name_and_told_of_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobodys = max(entry.pw_uid for entry in pwd.getpwall()) - 1
    while postgres.has_account(nobodys):
        nobodys -= 1
    monkeypatch.setattr(os, "getuid", lambda: nobodys)
    monkeypatch.setattr(os, "geteuid", lambda: nobodys)
    environment = {"HOME": str(tmp_path)}
    place_caches(environment, tmp_path)
    assert environment["USER"] == f"uid-{nobodys}"
    with pytest.raises(StackError, match=f"user id {nobodys} has none here; add it to /etc/passwd"):
        postgres.prepare_cluster(tmp_path / "postgres")
