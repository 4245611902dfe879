"""The files of adapters that answers are generated with: they stay while they are used, and are not kept for ever."""

import shutil
from pathlib import Path
from uuid import uuid4

import pytest

from jobs.settings import Settings
from jobs.shared_store import SharedStore, checkpoint_name, owner_of
from sft.checkpoints.folders import publish_checkpoint, stage_checkpoint
from sft.errors import ModelNotFound
from tasks import fetched_adapters
from tasks.fetched_adapters import MOST_FOLDERS, FetchedAdapters

JOB = uuid4()
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(1000), "optimizer.pt": bytes(5000)}


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", store=(tmp_path / "store").as_uri())


@pytest.fixture
def adapters(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    return FetchedAdapters(folder)


def save(directory: Path, step: int, weights: bytes = FILES["adapter_model.safetensors"]) -> Path:
    staged = stage_checkpoint(directory, step)
    for name, content in {**FILES, "adapter_model.safetensors": weights}.items():
        (staged / name).write_bytes(content)
    return publish_checkpoint(staged)


def describe(folder: Path | None, step: int = 2) -> dict[str, object]:
    return {"job_id": str(JOB), "step": step, "folder": str(folder) if folder else None}


def test_a_checkpoint_that_is_removed_stays_for_those_who_asked_for_it(settings, adapters, tmp_path):
    folder = save(tmp_path / "job", 2)
    found = adapters.fetch("a/2", describe(folder), settings)
    assert {path.name for path in found.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "complete.json",
    }
    assert (found / "adapter_model.safetensors").samefile(folder / "adapter_model.safetensors")  # takes no space
    assert adapters.fetch("a/2", describe(folder), settings) == found
    shutil.rmtree(folder)
    assert (found / "adapter_model.safetensors").read_bytes() == FILES["adapter_model.safetensors"]
    with pytest.raises(ModelNotFound, match=r"checkpoint of step 2.*was removed"):
        adapters.fetch("a/2", describe(folder), settings)


def test_a_checkpoint_that_is_written_again_is_another_one(settings, adapters, tmp_path):
    first = adapters.fetch("a/2", describe(save(tmp_path / "job", 2)), settings)
    again = adapters.fetch("a/2", describe(save(tmp_path / "job", 2, b"other")), settings)
    assert (again / "adapter_model.safetensors").read_bytes() == b"other"
    assert first != again


def test_a_version_that_the_registry_gives_again_is_another_one(settings, adapters, monkeypatch):
    monkeypatch.setattr(fetched_adapters, "locate_adapter", lambda reference, settings, place: place)  # MLflow's files
    first = adapters.fetch("models:/mine/1", None, settings, created=1)
    assert adapters.fetch("models:/mine/1", None, settings, created=1) == first
    assert adapters.fetch("models:/mine/1", None, settings, created=2) != first


def test_a_damaged_checkpoint_is_not_used(settings, adapters, tmp_path):
    folder = save(tmp_path / "job", 2)
    (folder / "optimizer.pt").unlink()
    with pytest.raises(ModelNotFound):
        adapters.fetch("a/2", describe(folder), settings)
    assert [*(tmp_path / "own").iterdir()] == []


def test_a_checkpoint_in_the_store_is_fetched_without_what_only_training_needs(settings, adapters, tmp_path):
    store = SharedStore.find(settings)
    store.put(owner_of(JOB), checkpoint_name(2), save(tmp_path / "job", 2))
    found = adapters.fetch("a/2", describe(None), settings)
    assert (found / "adapter_model.safetensors").read_bytes() == FILES["adapter_model.safetensors"]
    assert not (found / "optimizer.pt").exists()
    with pytest.raises(ModelNotFound):
        adapters.fetch("a/3", describe(None, 3), settings)


def test_unused_folders_are_removed_the_one_used_longest_ago_first(settings, adapters, tmp_path):
    folder = save(tmp_path / "job", 2)
    first, *others = (adapters.fetch(f"a/{number}", describe(folder), settings) for number in range(MOST_FOLDERS + 2))
    assert len([*(tmp_path / "own").iterdir()]) == MOST_FOLDERS + 2  # all are used
    for one in others:
        adapters.release(one)
    adapters.release(adapters.fetch("a/1", describe(folder), settings))
    adapters.fetch("another", describe(folder), settings)
    assert len([*(tmp_path / "own").iterdir()]) == MOST_FOLDERS
    assert first.exists()
    assert others[0].exists()
    assert not others[1].exists()
