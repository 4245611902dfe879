"""Where an export may be written: not among the service's files, nor into a model or another export."""

from pathlib import Path

import pytest

from jobs.settings import Settings
from sft.errors import ExportRefused
from tasks.export import MANIFEST, Options, Target, check_place, export
from tests.model_files import write_model


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "state", dataset_registry=str(tmp_path / "registry"), model_root=tmp_path / "bases")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("bases/me/base/merged", "the model root"),
        ("bases/me/new", "the model root"),
        ("bases", "the model root"),
        ("registry/out", "the dataset registry"),
        ("state/data/out", "the data root"),
        ("state/outputs/out", "the output root"),
        ("state/own-data/registry/out", "the state folder"),
        ("state/mlartifacts/1/out", "the state folder"),
        ("state/exports", "the state folder"),
        ("state", "the state folder"),
        ("somewhere/base/deep/out", "somewhere/base, which has a model"),
        ("adapter/out", "adapter, which has a model"),
        ("before/out", "before, which has an export"),
        ("link/out", "the model root"),
    ],
)
def test_places_of_other_files_are_refused(tmp_path: Path, settings: Settings, place: str, told: str) -> None:
    write_model(tmp_path / "somewhere/base")
    write_model(tmp_path / "adapter")
    (tmp_path / "adapter/config.json").rename(tmp_path / "adapter/adapter_config.json")
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / MANIFEST).write_text("{}")
    settings.model_root.mkdir()
    (tmp_path / "link").symlink_to(settings.model_root)
    with pytest.raises(ExportRefused, match=rf"{place} is in .*{told}.*name a folder elsewhere"):
        check_place(tmp_path / place, settings)


@pytest.mark.parametrize("place", ["out", "somewhere/out", "state/exports/out", "state-2/out"])
def test_other_places_are_free(tmp_path: Path, settings: Settings, place: str) -> None:
    write_model(tmp_path / "somewhere/base")
    (tmp_path / "config.json").write_text("{}")  # of another program
    check_place(tmp_path / place, settings)


def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(ExportRefused, match=r"name too long.*name another folder"):
        export(settings, "mine@1", Target.PEFT, tmp_path / ("n" * 300), Options())
