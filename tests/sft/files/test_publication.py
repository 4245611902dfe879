"""Folders that several processes put in the same place at once."""

from pathlib import Path
from threading import Barrier, Thread

import pytest

from sft.files.publication import discard_folder, publish_folder
from tests.killed import kill_at_each_step


@pytest.mark.parametrize("replace", [True, False])
def test_makers_of_the_same_folder_that_end_together_all_succeed(tmp_path: Path, replace: bool) -> None:
    makers = 8
    target, barrier = tmp_path / "made", Barrier(makers)
    errors: list[Exception] = []

    def make(number: int) -> None:
        try:
            with publish_folder(target, replace) as folder:
                (folder / "number").write_text(str(number))
                barrier.wait()
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=make, args=(number,)) for number in range(makers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert int((target / "number").read_text()) in range(makers)


def test_what_another_maker_puts_there_between_the_look_and_the_rename_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "made"
    rename = Path.rename

    def rename_after_another(self: Path, place: Path) -> Path:
        if place == target and not target.exists():
            target.mkdir()
            (target / "theirs").touch()
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", rename_after_another)
    with publish_folder(target, replace=False) as folder:
        (folder / "ours").touch()
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_is_gone_already_is_discarded(tmp_path: Path) -> None:
    discard_folder(tmp_path / "gone")
    discard_folder(tmp_path / "never/there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replace", [True, False])
def test_a_maker_that_is_killed_at_any_step_leaves_a_whole_folder_or_none_and_nothing_for_ever(
    tmp_path: Path, replace: bool
) -> None:
    target = tmp_path / "made"

    def make(name: str = "made", content: str = "new") -> None:
        with publish_folder(tmp_path / name, replace) as folder:
            (folder / "below").mkdir()
            for path in (folder / "one", folder / "below" / "two"):
                path.write_text(content)

    def check() -> None:
        if target.exists():
            assert len({(target / name).read_text() for name in ("one", "below/two")}) == 1
        make("another")  # whoever comes next cleans up, whatever they make
        make("made", "old")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "made"]
        if not replace:
            discard_folder(target)

    check()
    assert kill_at_each_step(make, check) > 15


def test_what_is_being_made_is_no_leftover(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "slow") as slow:
        (slow / "file").touch()
        with publish_folder(tmp_path / "fast") as fast:
            (fast / "file").touch()
        assert (slow / "file").exists()
    assert (tmp_path / "slow" / "file").exists()
