"""The stamp of a folder changes whenever one of its files does, and never else."""

import os
import time
from pathlib import Path

import pytest

from sft.files.stamps import TEMPLATES_FOLDER, stamp_folder
from tuneyard_wire import model_folder


def rewrite_with_the_old_time(folder: Path) -> None:
    time.sleep(0.05)  # a file system's clock may tick only every hundredth of a second
    before = (folder / "a").stat()
    (folder / "a").write_text("2")
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_one_of_the_same_time(folder: Path) -> None:
    before = (folder / "a").stat()
    (folder / "new").write_text("2")
    os.utime(folder / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "new").rename(folder / "a")


def point_the_link_elsewhere(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to(folder.parent / "other")


def break_the_link(folder: Path) -> None:
    (folder.parent / "named").unlink()


CHANGES = {
    "longer": lambda folder: (folder / "a").write_text("11"),
    "rewritten": rewrite_with_the_old_time,
    "replaced": replace_by_one_of_the_same_time,
    "added": lambda folder: (folder / "b").write_text(""),
    "removed": lambda folder: (folder / "a").unlink(),
    "renamed": lambda folder: (folder / "a").rename(folder / "b"),
    "linked file written": lambda folder: (folder.parent / "named").write_text("33"),
    "another link": point_the_link_elsewhere,
    "broken link": break_the_link,
    "broken link removed": lambda folder: (folder / "loop").unlink(),
    "template written": lambda folder: (folder / TEMPLATES_FOLDER / "tools.jinja").write_text("44"),
    "template added": lambda folder: (folder / TEMPLATES_FOLDER / "rag.jinja").write_text(""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("named", "other"):
        (tmp_path / name).write_text("3")
        os.utime(tmp_path / name, ns=(0, 0))
    made = tmp_path / "model"
    made.mkdir()
    (made / "a").write_text("1")
    (made / "link").symlink_to(tmp_path / "named")
    (made / "loop").symlink_to("loop")
    (made / TEMPLATES_FOLDER).mkdir()
    (made / TEMPLATES_FOLDER / "tools.jinja").write_text("4")
    return made


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_of_a_file_changes_the_stamp(folder, change):
    before = stamp_folder(folder)
    assert stamp_folder(folder) == before
    change(folder)
    assert stamp_folder(folder) != before


def test_reading_the_files_does_not_change_it(folder):
    before = stamp_folder(folder)
    (folder / "a").read_text()
    assert stamp_folder(folder) == before


def test_the_folder_of_templates_is_the_one_that_is_uploaded():
    assert TEMPLATES_FOLDER == model_folder.TEMPLATES


def test_a_folder_that_is_not_there_has_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        stamp_folder(tmp_path / "nowhere")
