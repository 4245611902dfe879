"""The temporary folder is everybody's: nothing is written where another account could put a link."""

import os
import tempfile
from pathlib import Path

import pytest

from jobs.folders import output_folder
from jobs.settings import Settings
from sft.errors import InvalidConfig
from sft.files.places import find_foreign

STRANGER = 65534


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Of a service whose temporary folder is an empty one that everybody may write to, as /tmp is."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.setenv("TMPDIR", str(shared))
    return Settings(home=tmp_path / "home")


def test_folders_of_this_account_are_taken(settings):
    shared = Path(tempfile.gettempdir())
    (shared / "mine/deeper").mkdir(parents=True)
    for name in ("mine", "mine/deeper/new", "new/newer"):
        assert output_folder(settings, str(shared / name)) == shared / name


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("name", ["theirs", "theirs/new", "theirs/new/newer", "mine/theirs"])
def test_a_folder_of_another_account_is_refused(settings, name):
    shared = Path(tempfile.gettempdir())
    for folder in ("theirs", "mine/theirs"):
        (shared / folder).mkdir(parents=True)
        os.chown(shared / folder, STRANGER, STRANGER)
    with pytest.raises(InvalidConfig, match="another account may write to"):
        output_folder(settings, str(shared / name))


def test_a_folder_that_everybody_may_write_to_is_refused(settings):
    shared = Path(tempfile.gettempdir())
    (shared / "open").mkdir()
    (shared / "open").chmod(0o777)
    with pytest.raises(InvalidConfig, match="another account may write to"):
        output_folder(settings, str(shared / "open/job"))
    (shared / "open").chmod(0o1777)
    assert find_foreign(shared / "open/job", shared) is None
