"""Added datasets as jobs, plans, checks before a submission and retraining find them."""

import shutil

import pytest

from jobs.own_data.registry import OwnRegistry
from jobs.preflight.context import CheckContext
from jobs.preflight.datasets import check_dataset
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, InvalidDataset
from tasks.add_data import find_check_limits
from tasks.dataset import resolve
from tasks.dataset_mix import resolve_all
from tasks.limits import find_limits
from tests.jobs.own_data.rows import add, rows
from tuneyard_wire.dataset_reference import DatasetReference


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """A state folder with two versions of `support` and one of `other`."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    for text in ("a", "b"):
        add(settings, rows(text))
    add(settings, rows("c", "d"), "other.jsonl")
    return settings


@pytest.mark.parametrize(
    ("reference", "version", "content"),
    [("support@v1", "v1", "a"), ("support@v2", "v2", "b"), ("support", "v2", "b"), ("support@main", "v2", "b")],
)
def test_a_job_gets_the_version_that_it_names_or_the_newest(settings, reference, version, content):
    found = resolve(reference, settings)

    assert found.train_file.read_bytes() == rows(content)
    assert (found.name, found.revision, found.source, found.rows) == ("support", version, "dvc", 1)
    assert str(found.reference) == f"support@{version}"
    assert found.commit == OwnRegistry(settings.home).find(DatasetReference.parse(reference)).commit


def test_retraining_finds_it_by_its_commit(settings):
    commit = OwnRegistry(settings.home).find(DatasetReference("support", "v1")).commit
    assert resolve(f"support@{commit}", settings).revision == "v1"


def test_a_mix_may_have_added_datasets_beside_others(settings):
    config = SFTConfig(
        base_model="m",
        dataset_name=["support@v1", {"name": "other@v1", "weight": 0.5}],
        validation_dataset="handbook@v1.0",
        dataset_format="auto",
    )
    mix = resolve_all(config, settings)
    assert [str(one.reference) for one in mix.versions] == ["support@v1", "other@v1", "handbook@v1.0"]


def test_an_unknown_version_is_told_with_those_there_are(settings):
    with pytest.raises(DatasetNotFound, match=r"support@v9 is not a version of support; it has v1, v2"):
        resolve("support@v9", settings)


def test_a_name_that_the_configured_registry_has_too_is_an_error_not_a_choice(settings, tmp_path):
    import subprocess

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "support.jsonl").write_bytes(rows("theirs"))
    for command in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "."),
        ("-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "m"),
    ):
        subprocess.run(["git", *command], cwd=theirs, check=True)
    named = settings.model_copy(update={"dataset_registry": str(theirs)})
    for reference in ("support", "support@v1"):
        with pytest.raises(InvalidDataset, match="was added too; add the file under another name"):
            resolve(reference, named)


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("support@v1", []),
        ("support", []),
        ("support@v3", ["support@v3 is not a version of support; it has v1, v2"]),
        ("handbook@v1.0", []),
    ],
)
def test_a_submission_is_checked_against_added_datasets(settings, name, problems):
    spec = JobSpec(config=SFTConfig(base_model="m", dataset_name=name, dataset_format="auto"))
    assert [finding.text for finding in check_dataset(spec, CheckContext(settings, True))] == problems


def test_another_machine_gets_it_from_the_store(tmp_path, registry):
    common = {"store": f"file://{tmp_path}/store", "dataset_registry": registry}
    here, there = (Settings(home=tmp_path / name, **common) for name in ("here", "there"))
    for text in ("a", "b"):
        add(here, rows(text))
    commit = OwnRegistry(here.home).find(DatasetReference("support", "v1")).commit
    for reference, content in (("support@v1", "a"), ("support", "b"), (f"support@{commit}", "a")):
        assert resolve(reference, there).train_file.read_bytes() == rows(content)
    with pytest.raises(DatasetNotFound):
        resolve("support@v3", there)

    shutil.rmtree(here.home / "own-data")  # the added data survives its machine
    assert resolve("support@v2", here).revision == "v2"


def test_the_check_of_a_small_file_has_little_time_whatever_it_claims_to_hold(tmp_path):
    settings = Settings(home=tmp_path)
    assert find_check_limits(settings, 2**20).total_seconds == 230
    assert find_check_limits(settings, 0).total_seconds == 30
    assert find_check_limits(settings, 5 * 10**9).total_seconds == settings.input_seconds
    assert find_check_limits(settings, 2**10).memory_bytes == find_limits(settings).memory_bytes
